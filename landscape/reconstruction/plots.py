"""What each published plot measures of named risks, and the figures of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.figures import plot_contours, plot_fluctuation, plot_lines, plot_surface_3d
from landscape.perturbation import PerturbationOptions, measure_perturbation
from landscape.results import Journal
from landscape.risk import ClassRisk
from landscape.risk.points import Policy
from landscape.surface import measure_surface

Progress = Callable[[int, int, str], None]

# The key that CC-SAM's configuration files hold and its released code never reads.
CCSAM_VARIANCE = 1e-3
NUM_RANDOM = 5
# Relative radii of the filter-normalised draws; ours.
RADII = (0.05, 0.1, 0.2)
# Random directions of a line; one is published, the spread needs more.
NUM_LINES = 5
DEFAULT_POINTS = {"line": 51, "plane": 51, "head and tail": 21}


@dataclass(frozen=True)
class Settings:
    """What the measurements of one reconstruction share."""

    seed: int = 0
    points: int | None = None
    batchnorm: Policy = "frozen"
    progress: Progress | None = None
    journal: Journal | None = None

    def journal_of(self, name: str) -> Journal | None:
        """Return the journal of one checkpoint."""
        return self.journal.renamed(name) if self.journal is not None else None

    def progress_of(self, name: str) -> Progress | None:
        """Return a callback whose text names the checkpoint."""
        if self.progress is None:
            return None
        report = self.progress
        return lambda done, total, text: report(done, total, f"{name}: {text}")

    def grid(self, kind: str) -> np.ndarray:
        """Return the coordinates of [-1, 1], as many as asked for; an odd number holds 0 exactly."""
        last = (self.points or DEFAULT_POINTS[kind]) - 1
        return np.arange(-last, last + 1, 2) / last


@dataclass(frozen=True)
class Made:
    """What a reconstruction gives: results by checkpoint, under the name of their group, and figures by name."""

    group: str
    results: dict[str, xr.Dataset]
    figures: dict[str, Any]


def fluctuation(risks: Mapping[str, ClassRisk], settings: Settings) -> Made:
    """Perturb every risk at random five times: filter-normalised, with absolute noise, and under its own loss."""
    if settings.points is not None or settings.batchnorm != "frozen":
        asked = "points" if settings.points is not None else f"batchnorm '{settings.batchnorm}'"
        raise LandscapeError(f"ccsam-fluctuation draws at random with frozen statistics, got {asked}: leave it out")
    options = PerturbationOptions(
        radii=RADII, sigmas=(CCSAM_VARIANCE**0.5,), num_draws=2 * NUM_RANDOM, rhos=(), ascent_steps=1
    )
    results = {
        name: measure_perturbation(
            risk,
            options=options,
            seed=settings.seed,
            journal=settings.journal_of(name),
            progress=settings.progress_of(name),
        )
        for name, risk in risks.items()
    }
    drawn = {name: _five_draws(_of_plain_loss(dataset)) for name, dataset in results.items()}
    absolute = {name: dataset.assign_attrs(normalization="none, absolute noise") for name, dataset in drawn.items()}
    lanes = _groups_and_all(results)
    figures = {
        "filter-normalised": plot_fluctuation(drawn, lanes=lanes),
        "gaussian": plot_fluctuation(absolute, lanes=lanes, variable="gaussian_loss_increase"),
    }
    own = _with_own_loss(results, "own_loss_increase", "loss_increase")
    if own:
        five = {name: _five_draws(dataset) for name, dataset in own.items()}
        figures["own-loss"] = plot_fluctuation(five, lanes=lanes, variable="own_loss_increase")
    return Made("perturbation", results, figures)


def _five_draws(dataset: xr.Dataset) -> xr.Dataset:
    """Return the five draws without their mirror images, and the mean and standard error over just these."""
    drawn = dataset.isel(draw=slice(None, None, 2)).drop_vars("worst_case_increase")
    values = drawn["loss_increase"]
    error = values.std("draw", ddof=1) / np.sqrt(values.sizes["draw"])
    return drawn.assign(mean_increase=values.mean("draw"), mean_increase_stderr=error)


def line(risks: Mapping[str, ClassRisk], settings: Settings) -> Made:
    """Walk filter-normalised lines, all risks side by side."""
    results = {
        name: measure_surface(
            risk,
            x=settings.grid("line"),
            num_pairs=NUM_LINES,
            batchnorm=settings.batchnorm,
            seed=settings.seed,
            journal=settings.journal_of(name),
            progress=settings.progress_of(name),
        )
        for name, risk in risks.items()
    }
    lanes = _groups_and_all(results)
    figures = {"line": plot_lines(_each(results, _of_plain_loss), lanes=lanes)}
    own = _with_own_loss(results, "own_loss", "loss")
    if own:
        figures["line-own-loss"] = plot_lines(own, lanes=lanes, variable="own_loss")
    return Made("surface_line", results, figures)


def _planes(
    risks: Mapping[str, ClassRisk], settings: Settings, kind: str, lanes: str | None = None
) -> dict[str, xr.Dataset]:
    grid = settings.grid(kind)
    return {
        name: measure_surface(
            risk,
            lanes,
            kind="plane",
            x=grid,
            y=grid,
            batchnorm=settings.batchnorm,
            seed=settings.seed,
            journal=settings.journal_of(name),
            progress=settings.progress_of(name),
        )
        for name, risk in risks.items()
    }


def gnm_surface(risks: Mapping[str, ClassRisk], settings: Settings) -> Made:
    """Measure a plane on the published grid; draw it from the top, from the side, and relative to the weights."""
    results = _planes(risks, settings, "plane")
    drawn = _each(results, _of_plain_loss)
    figures = {
        "top": plot_contours(drawn, lanes=["all"]),
        "side": plot_surface_3d(drawn, lanes=["all"]),
    }
    if _holds_centre(results):
        figures["top-relative"] = plot_contours(drawn, lanes=["all"], relative=True)
    return Made("surface", results, figures)


def head_tail_3d(risks: Mapping[str, ClassRisk], settings: Settings) -> Made:
    """Measure a plane; draw head and tail in space."""
    _require_head_and_tail(risks)
    results = _planes(risks, settings, "head and tail", "groups,all")
    drawn = _each(results, _of_plain_loss)
    figures = {"surfaces": plot_surface_3d(drawn, lanes=["head", "tail"])}
    if _holds_centre(results):
        figures["surfaces-relative"] = plot_surface_3d(drawn, lanes=["head", "tail"], relative=True)
    return Made("surface", results, figures)


def head_tail_contours(risks: Mapping[str, ClassRisk], settings: Settings) -> Made:
    """Measure a plane; draw head and tail as contours."""
    _require_head_and_tail(risks)
    results = _planes(risks, settings, "head and tail", "groups,all")
    drawn = _each(results, _of_plain_loss)
    figures = {"contours": plot_contours(drawn, lanes=["head", "tail"])}
    if _holds_centre(results):
        figures["contours-relative"] = plot_contours(drawn, lanes=["head", "tail"], relative=True)
    return Made("surface", results, figures)


def _holds_centre(results: Mapping[str, xr.Dataset]) -> bool:
    """Return whether the weights are a grid point, which a loss relative to them needs."""
    return all(0.0 in dataset["alpha"].values and 0.0 in dataset["beta"].values for dataset in results.values())


def _require_head_and_tail(risks: Mapping[str, ClassRisk]) -> None:
    for name, risk in risks.items():
        missing = [group for group in ("head", "tail") if not risk.groups.get(group)]
        if missing:
            raise LandscapeError(
                f"{name}: expected head and tail classes, got no {missing[0]}; choose --group-rule ranks"
            )


def _of_plain_loss(dataset: xr.Dataset) -> xr.Dataset:
    """Return the Dataset with the objective of ``loss``, for labels: cross-entropy, whatever the training."""
    return dataset.assign_attrs(objective="cross-entropy")


def _each(results: Mapping[str, xr.Dataset], change: Callable[[xr.Dataset], xr.Dataset]) -> dict[str, xr.Dataset]:
    return {name: change(dataset) for name, dataset in results.items()}


def _with_own_loss(results: Mapping[str, xr.Dataset], own: str, plain: str) -> dict[str, xr.Dataset]:
    """Return the Datasets with ``own`` in all of them, for cross-entropy that is ``plain``; {} if none has another loss."""
    if not any(own in dataset for dataset in results.values()):
        return {}
    return {
        name: (dataset if own in dataset else dataset.assign({own: dataset[plain]})).assign_attrs(objective="own loss")
        for name, dataset in results.items()
    }


def _groups_and_all(results: Mapping[str, xr.Dataset]) -> list[str]:
    first = next(iter(results.values()))
    return [str(lane) for lane in first["lane"].values if first["lane_kind"].sel(lane=lane) in ("group", "all")]
