"""How much is drawn, how far, and which measures are taken."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from landscape.errors import LandscapeError, require_whole, unknown_name

Placement = Literal["sphere", "ball"]

_LENGTHS = (
    "sigma",
    "relative_radius",
    "adaptive_radius",
    "rho",
    "rho_linf",
    "adaptive_rho",
    "adaptive_rho_linf",
    "delta",
)
_COUNTS = {"num_pairs": 2, "ascent_steps": 1, "max_batches": 1}


@dataclass(frozen=True)
class FlatnessOptions:
    """Lengths, effort and choice of the measures; validated once.

    Attributes
    ----------
    sigma
        Standard deviation of absolute Gaussian noise, per weight; 0.01 as in Bisla et al. (2022).
    relative_radius, placement
        Radius of the filter-relative average, as a share of each filter's norm, and whether a perturbation lies on the
        ``"sphere"`` of that radius (Li et al., 2018) or uniformly in the ``"ball"`` (Stutz et al., 2021).
    adaptive_radius
        Noise of standard deviation ``adaptive_radius * |w_i|`` on weight i.
    rho, rho_linf
        Radii of the worst cases in weight units; 0.05 as in Foret et al. (2021), and 1e-4, about as far from the weights
        of a ResNet-20 (270,000 of them).
    adaptive_rho, adaptive_rho_linf
        Radii of the worst cases in units of |w_i|; 0.5 as in Kwon et al. (2021), and 0.001, a change of every weight by
        a thousandth at most.
    delta
        Rise of the loss, in nats, whose radius is sought.
    num_pairs
        Antithetic pairs of each average, and directions of the radius.
    ascent_steps
        Projected gradient steps of each worst case.
    batch_size
        The m of m-sharpness, the same for every lane; None takes the examples of the smallest class that is measured.
    max_batches
        Disjoint batches of a lane at most.
    measures
        Names out of :data:`landscape.flatness.MEASURES`; () for all.
    """

    sigma: float = 0.01
    relative_radius: float = 0.1
    placement: Placement = "sphere"
    adaptive_radius: float = 0.1
    rho: float = 0.05
    rho_linf: float = 1e-4
    adaptive_rho: float = 0.5
    adaptive_rho_linf: float = 1e-3
    delta: float = 0.1
    num_pairs: int = 10
    ascent_steps: int = 10
    batch_size: int | None = None
    max_batches: int = 8
    measures: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in _LENGTHS:
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise LandscapeError(f"{name}: expected a positive number, got {value}")
        for name, least in _COUNTS.items():
            require_whole(name, getattr(self, name), least)
        if self.batch_size is not None:
            require_whole("batch_size", self.batch_size, 1)
        if self.placement not in get_args(Placement):
            raise unknown_name("placement", self.placement, get_args(Placement))
        if len(set(self.measures)) < len(self.measures):
            raise LandscapeError(f"measures: expected each name once, got {', '.join(self.measures)}")


# By the names of the presets of a diagnosis.
EFFORT: dict[str, FlatnessOptions] = {
    "quick": FlatnessOptions(num_pairs=4, ascent_steps=3, max_batches=2),
    "standard": FlatnessOptions(),
    "full": FlatnessOptions(num_pairs=50, ascent_steps=20, max_batches=32),
}
