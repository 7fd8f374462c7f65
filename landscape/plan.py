"""How much of each analysis is run, by preset."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from landscape.errors import LandscapeError, unknown_name
from landscape.flatness import EFFORT, FlatnessOptions
from landscape.perturbation import PerturbationOptions
from landscape.spectrum import SpectrumOptions

ANALYSES = ("spectrum", "perturbation", "surface", "escape", "flatness")
# Shortest and longest step of an escape, in tenths of the norm of the weights.
ESCAPE_RANGE = (0.001, 1.0)
# Images of at most so many pixels are cheap: all of them are analysed, and statistics are recomputed along lines.
SMALL_IMAGE = 16 * 16
# What preset quick measures of flatness: what costs passes only. The ascents would cost ten times as much, and the worst case
# of the perturbations is one of them.
QUICK_MEASURES = (
    "gradient_norm",
    "fisher_rao_norm",
    "relative_flatness",
    "mean_increase",
    "filter_relative_increase",
    "normalised_mean_increase",
)


@dataclass(frozen=True)
class Plan:
    """How much of each analysis a diagnosis runs.

    Attributes
    ----------
    spectrum, perturbation
        Options of the two measurements.
    line_points, line_pairs
        Points on [-1, 1] and random directions of the lines.
    plane_points
        Points per axis of the random plane on [-1, 1].
    eigen_points
        Points per axis of the eigen-plane; 0 leaves it out.
    max_per_class
        Examples of each class that are analysed, for images larger than 16 by 16; None for all.
    held_out
        Whether the lines are walked on the split that is not under study too, with the same cap.
    recalibrate
        Whether the lines show both BatchNorm policies: recomputing statistics passes up to 1000 images at every point.
    quadratic
        Whether the lines get their quadratic models, exact and fitted.
    escape_lengths
        Lengths, equal on a logarithmic scale from 0.001 to 1 tenth of the norm of the weights, of the steps along +-v_min
        and -gradient of every lane; 0 leaves the escapes out.
    flatness
        Options of the measures of flatness; None leaves them out.
    """

    spectrum: SpectrumOptions = field(default_factory=SpectrumOptions)
    perturbation: PerturbationOptions = field(default_factory=PerturbationOptions)
    line_points: int = 41
    line_pairs: int = 5
    plane_points: int = 21
    eigen_points: int = 15
    max_per_class: int | None = 50
    held_out: bool = True
    recalibrate: bool = True
    quadratic: bool = True
    escape_lengths: int = 13
    flatness: FlatnessOptions | None = EFFORT["standard"]

    def __post_init__(self) -> None:
        if self.escape_lengths < 0 or self.escape_lengths == 1:
            raise LandscapeError(f"escape_lengths: expected 0 or at least 2, got {self.escape_lengths}")


PRESETS: dict[str, Plan] = {
    "quick": Plan(
        spectrum=SpectrumOptions(num_probes=4, num_steps=10, tolerance=1e-3),
        perturbation=PerturbationOptions(num_draws=6, sigmas=(0.01,), rhos=(0.05,), ascent_steps=3),
        line_points=21,
        line_pairs=3,
        plane_points=11,
        eigen_points=9,
        max_per_class=10,
        recalibrate=False,
        escape_lengths=7,
        flatness=replace(EFFORT["quick"], measures=QUICK_MEASURES),
    ),
    "standard": Plan(),
    "full": Plan(
        spectrum=SpectrumOptions(num_probes=8, num_steps=60, max_steps=500),
        perturbation=PerturbationOptions(num_draws=30, radii=(0.05, 0.1, 0.2, 0.5), ascent_steps=20),
        line_points=51,
        line_pairs=10,
        plane_points=51,
        eigen_points=31,
        max_per_class=None,
        escape_lengths=25,
        flatness=EFFORT["full"],
    ),
}


def choose_plan(preset: str) -> Plan:
    """Return the plan of a preset name; LandscapeError for an unknown one."""
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return PRESETS[preset]


def capped(plan: Plan, image_pixels: int, max_per_class: int | None) -> Plan:
    """Return the plan for images of a size: the caller's cap on examples per class, else the preset's.

    Images of up to 16 x 16 pixels are analysed completely, and with both BatchNorm policies on lines.
    """
    is_small = image_pixels <= SMALL_IMAGE
    cap = None if is_small else plan.max_per_class
    return replace(
        plan, max_per_class=cap if max_per_class is None else max_per_class, recalibrate=plan.recalibrate or is_small
    )
