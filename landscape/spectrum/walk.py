"""Walks along a direction: how far the quadratic model holds, and what following it gains."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

# Ratio of neighbouring radii; a stretch must span MIN_STRETCH of these, a factor of 2, so that the loss crossing the
# parabola on its way somewhere else does not count. The upper end is then bisected to 2^(1/8), 9 %.
RADIUS_RATIO = math.sqrt(2.0)
MIN_STRETCH = 2
NUM_BISECTIONS = 2
# The even part must stand out of the loss's rounding by this factor at the smallest radius.
ABOVE_ROUNDING = 200.0
# Of the limit: a loss without rounding is followed no further in.
SMALLEST_SHARE = 1e-15

LossAlong = Callable[[float], float]


@dataclass(frozen=True)
class Walk:
    """Result of a walk along +-v.

    Attributes
    ----------
    quadratic_radius
        Upper end of the outermost stretch of radii (a factor of 2 long at least) in which the even part of the loss
        stays within half of lambda s^2 / 2; 0 if there is none.
    decrease
        Decrease of the loss at that radius on the better of the two sides, in loss units.
    step
        Signed distance of that better point.
    """

    quadratic_radius: float
    decrease: float
    step: float = 0.0


def smallest_radius(noise: float, curvature: float) -> float:
    """Return the radius at which lambda s^2 / 2 is visible above the noise of the loss."""
    return math.sqrt(2 * ABOVE_ROUNDING * noise / abs(curvature))


def walk_both_ways(along: LossAlong, *, curvature: float, noise: float, limit: float) -> Walk:
    r"""Find up to where :math:`(L(s) + L(-s))/2 - L(0)` agrees with :math:`\lambda s^2 / 2` to within half of it.

    The even part is used because slope and curvature can cancel on one side. The walk goes inwards from ``limit``:
    in a network with kinks (ReLU, max-pooling) the pointwise parabola is wrong between the distance of the nearest
    kinks (1e-6, say) and the scale on which they average out, and right again beyond it, which is where it matters.
    For a smooth loss the stretch reaches down to the smallest radius, and this is the radius where the model first fails.

    Parameters
    ----------
    along
        Loss at signed distance s along the unit direction.
    curvature
        lambda = v'Hv, not zero.
    noise
        Error of a loss evaluation, in loss units; see :mod:`landscape.spectrum.rounding`.
    limit
        Largest radius to try; a model that still holds there is reported as holding up to it.
    """
    start = along(0.0)
    sides: dict[float, tuple[float, float]] = {}

    def holds(radius: float) -> bool:
        plus, minus = along(radius), along(-radius)
        sides[radius] = start - min(plus, minus), radius if plus <= minus else -radius
        model = curvature * radius**2 / 2
        even = (plus + minus) / 2 - start
        return math.isfinite(even) and abs(even - model) <= abs(model) / 2

    smallest = max(smallest_radius(noise, curvature), SMALLEST_SHARE * limit)
    stretch: list[float] = []
    radius = limit
    while radius >= smallest and len(stretch) <= MIN_STRETCH:
        stretch = [*stretch, radius] if holds(radius) else []
        radius /= RADIUS_RATIO
    if len(stretch) <= MIN_STRETCH:
        return Walk(0.0, 0.0)
    good, bad = stretch[0], stretch[0] * RADIUS_RATIO
    for _ in range(NUM_BISECTIONS if good < limit else 0):
        trial = math.sqrt(good * bad)
        good, bad = (trial, bad) if holds(trial) else (good, trial)
    return Walk(good, *sides[good])
