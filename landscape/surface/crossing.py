"""Where functions of a radius, all evaluated at once, first rise by delta."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import toms748

from landscape.errors import LandscapeError

# A bracket this narrow, in units of the ray, is not narrowed further: a loss may jump at the weights themselves.
FINEST = 1e-12
# Brackets wider than this are halved, at radii that all lanes within the same pair of scanned ones share.
SHARED = 0.05


@dataclass(frozen=True)
class Radii:
    """Where the losses of L lanes first rise by delta along one ray; shape (L,), or (D, L) for D deltas.

    Attributes
    ----------
    radius
        By linear interpolation within the bracket; inf where the rise was never reached, NaN where a loss that is not
        a number lies before the first crossing that was found.
    low, high
        The bracket: the rise is not reached at ``low`` and at no evaluated radius before it, and is reached at
        ``high`` (inf: never). Its width is the error of ``radius``.
    evaluated
        Radii at which the losses were evaluated, ascending, 0 included: between two of them nothing is known.
    losses
        (evaluated, L) what they were.
    """

    radius: np.ndarray
    low: np.ndarray
    high: np.ndarray
    evaluated: np.ndarray
    losses: np.ndarray

    @property
    def num_evaluations(self) -> int:
        """Evaluations of the losses, the one at 0 included."""
        return len(self.evaluated)


def find_radii(
    losses: Callable[[float], np.ndarray],
    delta: float | Sequence[float],
    *,
    start: float = 1 / 64,
    limit: float = 2.0,
    growth: float = 2.0,
    tolerance: float = 0.05,
) -> Radii:
    r"""Find :math:`r_l(\delta) = \min\{r > 0 : L_l(r) \ge L_l(0) + \delta\}` for every lane l along one ray.

    Radii are scanned outwards until every lane has risen; the first crossing of the scan is narrowed by halving
    (of the logarithm: lanes meet at the same radii), and below 5 % by the method of Alefeld, Potra and Shi (scipy's
    ``toms748``). Losses need not be monotone: the result is the first crossing among the evaluated radii, and every
    evaluation serves all lanes.

    Parameters
    ----------
    losses
        From a radius >= 0 to the losses (L,) there.
    delta
        Rise or rises, positive, in the unit of the losses.
    start, limit, growth, tolerance
        As in :class:`RadiusOptions`.

    Returns
    -------
    Radii
        Radius and bracket per lane (and delta).

    Raises
    ------
    LandscapeError
        For a delta, scan or tolerance out of range, or a loss at 0 that is not finite.

    Examples
    --------
    >>> found = find_radii(lambda r: np.array([r**2, 4 * r**2, -r]), 0.25, tolerance=1e-6)
    >>> found.radius.round(5).tolist(), found.high.round(5).tolist()
    ([0.5, 0.25, inf], [0.5, 0.25, inf])

    Notes
    -----
    Source: Alefeld, Potra and Shi, ACM TOMS 21 (1995), algorithm 748. Its function here is arsinh(rise / delta) less
    arsinh(1): the same root, and losses that span decades no longer bend the interpolation.
    """
    deltas = np.atleast_1d(np.asarray(delta, dtype=np.float64))
    require_deltas(deltas)
    require_scan(start, limit, growth, tolerance)
    table: dict[float, np.ndarray] = {}

    def look(radius: float) -> np.ndarray:
        """Return (D, L): how far each lane is above or below each rise, evaluated once per radius."""
        if radius not in table:
            table[radius] = np.asarray(losses(radius), dtype=np.float64)
        return (table[radius] - table[0.0])[None] - deltas[:, None]

    with np.errstate(invalid="ignore", over="ignore"):
        if not np.isfinite(look(0.0)).all():
            raise LandscapeError(f"the losses at the weights are not finite: {table[0.0].tolist()}")
        radius = start
        while True:
            look(min(radius, limit))
            low, high, is_known = _brackets(table, deltas)
            if radius >= limit or not (np.isinf(high) & is_known).any():
                break
            radius *= growth
        _narrow(look, table, deltas, tolerance)
        low, high, is_known = _brackets(table, deltas)
        found = _interpolated(table, deltas, low, high)
    shape = (*np.shape(delta), low.shape[1])
    radii = np.array(sorted(table))
    return Radii(
        radius=np.where(is_known, found, np.nan).reshape(shape),
        low=low.reshape(shape),
        high=high.reshape(shape),
        evaluated=radii,
        losses=np.stack([table[r] for r in radii]),
    )


def _brackets(table: dict[float, np.ndarray], deltas: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return low, high (D, L) around the first crossing, and whether no NaN lies before it."""
    radii = np.array(sorted(table))
    rises = np.stack([table[r] for r in radii]) - table[0.0]  # (K, L)
    crossed = rises[None] >= deltas[:, None, None]  # (D, K, L); a NaN has not crossed
    first = np.where(crossed.any(1), crossed.argmax(1), len(radii))  # (D, L)
    hole = np.isnan(rises)
    first_hole = np.where(hole.any(0), hole.argmax(0), len(radii))[None]  # (1, L)
    high = np.append(radii, np.inf)[first]
    return radii[np.minimum(first, first_hole) - 1], high, first <= first_hole


def _narrow(
    look: Callable[[float], np.ndarray], table: dict[float, np.ndarray], deltas: np.ndarray, tolerance: float
) -> None:
    """Evaluate until every bracket is at most ``tolerance`` wide, relative to its upper end."""
    while True:
        low, high, is_known = _brackets(table, deltas)
        rows = np.argwhere(is_known & np.isfinite(high) & (high - low > np.maximum(tolerance * high, FINEST)))
        if not len(rows):
            return
        i, lane = (int(n) for n in rows[0])
        if high[i, lane] - low[i, lane] > SHARED * high[i, lane]:
            look(float(np.sqrt(low[i, lane] * high[i, lane]) or high[i, lane] / 2))
            continue

        def side(radius: float, i: int = i, lane: int = lane) -> float:
            gap = look(radius)[i, lane]
            if math.isnan(gap):
                raise _NotANumberError
            value = math.asinh(min(gap / deltas[i], 1e300) + 1) - math.asinh(1)
            return value or 1e-16  # a point exactly on the level has crossed: search on below it

        try:
            # Half, so that rounding cannot leave the bracket just too wide for ever.
            toms748(side, low[i, lane], high[i, lane], xtol=FINEST / 2, rtol=tolerance / 2)
        except _NotANumberError:
            continue  # its bracket now has a hole, and is left alone


class _NotANumberError(Exception):
    """A loss inside a bracket is not a number."""


def _interpolated(table: dict[float, np.ndarray], deltas: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return (D, L): where the chord between the ends of a bracket meets the level; inf where there is no upper end."""
    out = high.copy()
    for i, lane in np.argwhere(np.isfinite(high)):
        below, above = (table[end[i, lane]][lane] - table[0.0][lane] for end in (low, high))
        share = (deltas[i] - below) / (above - below)  # 0 for an infinite loss above: the lower end
        out[i, lane] = low[i, lane] + share * (high[i, lane] - low[i, lane])
    return out


def require_deltas(deltas: Collection[float] | np.ndarray) -> None:
    """Refuse rises that are not positive."""
    if len(deltas) == 0 or not all(0 < value < math.inf for value in deltas):
        raise LandscapeError(f"delta: expected positive rises of the loss in nats, got {list(deltas)}")


def require_scan(start: float, limit: float, growth: float, tolerance: float) -> None:
    """Refuse a scan that could not end, or that finds nothing."""
    if not 0 < start <= limit < math.inf:
        raise LandscapeError(f"radii: expected 0 < start <= limit < inf, got start {start} and limit {limit}")
    if not 1.01 <= growth < math.inf:
        raise LandscapeError(f"growth: expected a factor of at least 1.01 between scanned radii, got {growth}")
    if not 1e-12 <= tolerance < 1:
        raise LandscapeError(f"tolerance: expected a relative width from 1e-12 to below 1, got {tolerance}")
