"""Spectrum, perturbation and surface of one risk together, and one row per lane that says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.perturbation import PerturbationOptions, lane_means, measure_perturbation
from landscape.results import Journal, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, lanes_of
from landscape.spectrum import SpectrumOptions, measure_spectrum
from landscape.surface import eigen_axes, measure_surface

Progress = Callable[[int, int, str], None]

ANALYSES = ("spectrum", "perturbation", "surface")


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
    """

    spectrum: SpectrumOptions = field(default_factory=SpectrumOptions)
    perturbation: PerturbationOptions = field(default_factory=PerturbationOptions)
    line_points: int = 41
    line_pairs: int = 5
    plane_points: int = 21
    eigen_points: int = 15
    max_per_class: int | None = 50


PRESETS: dict[str, Plan] = {
    "quick": Plan(
        spectrum=SpectrumOptions(num_probes=4, num_steps=10, tolerance=1e-3),
        perturbation=PerturbationOptions(num_draws=6, sigmas=(0.01,), rhos=(0.05,), ascent_steps=3),
        line_points=21,
        line_pairs=3,
        plane_points=11,
        eigen_points=9,
        max_per_class=10,
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
    ),
}


def choose_plan(preset: str) -> Plan:
    """Return the plan of a preset name; LandscapeError for an unknown one."""
    if preset not in PRESETS:
        raise unknown_name("preset", preset, PRESETS)
    return PRESETS[preset]


def measure_accuracy(
    risk: ClassRisk, lanes: LaneChoice | None = None, *, group_average: GroupAverage = "examples"
) -> xr.Dataset:
    """Return accuracy and loss of each lane on the examples under study.

    Both are exact means over those examples; ``accuracy_stderr`` is the standard error of the accuracy as an estimate
    for the population with these class shares: sqrt(sum_c w_c^2 q_c (1 - q_c) / (n_c + 4)) for classes of weights w_c
    with q_c = (n_c p_c + 2) / (n_c + 4), so that an accuracy of 0 or 1 has an error too (Agresti and Coull, *Approximate
    is better than "exact" for interval estimation of binomial proportions*, 1998).
    """
    chosen = lanes_of(risk, lanes, group_average=group_average)
    values = risk.evaluate(risk.theta)
    right = values.get("accuracy", torch.full_like(values["loss"], torch.nan))
    shares = replace(chosen, weights=chosen.weights**2)
    counts = risk.class_counts.cpu()
    shrunk = (counts * right + 2) / (counts + 4)
    variance = lane_means(shares, shrunk * (1 - shrunk) / (counts + 4))
    dataset = xr.Dataset(
        {
            "accuracy": ("lane", lane_means(chosen, right)),
            "accuracy_stderr": ("lane", np.sqrt(variance)),
            "loss": ("lane", lane_means(chosen, values["loss"])),
            "num_examples": ("lane", np.asarray(chosen.num_examples)),
        },
        coords={
            "lane": list(chosen.names),
            "lane_kind": ("lane", list(chosen.kinds)),
            "lane_group": ("lane", list(chosen.groups)),
        },
    )
    if "cross_entropy" in values:
        dataset["cross_entropy"] = ("lane", lane_means(chosen, values["cross_entropy"]))
    dataset.attrs = {
        **risk.attributes,
        "kind": "accuracy",
        "exactness": "exact means over the stated examples",
        "versions": versions(),
    }
    return dataset


def measure_everything(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    plan: Plan | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> dict[str, xr.Dataset]:
    """Run accuracy, spectrum, perturbation, line, plane and eigen-plane; return the groups of a results file.

    The eigen-plane is spanned by v_min and v_max of the lane ``tail`` (of the last lane where there is no tail), in
    units of a tenth of |theta|: comparable between models whose weights differ in size.
    """
    what = plan or Plan()
    shared: dict[str, Any] = {"seed": seed, "group_average": group_average, "journal": journal, "progress": progress}
    groups = {"accuracy": measure_accuracy(risk, lanes, group_average=group_average)}
    groups["spectrum"] = measure_spectrum(risk, lanes, options=what.spectrum, **shared)
    groups["perturbation"] = measure_perturbation(risk, lanes, options=what.perturbation, **shared)
    axis = np.linspace(-1, 1, what.plane_points)
    groups["surface_line"] = measure_surface(
        risk,
        lanes,
        kind="line",
        x=np.linspace(-1, 1, what.line_points),
        num_pairs=what.line_pairs,
        **shared,
    )
    if len(risk.theta) < 2:
        return groups
    groups["surface"] = measure_surface(risk, lanes, kind="plane", x=axis, y=axis, **shared)
    if what.eigen_points:
        names = [str(name) for name in groups["spectrum"].lane.values]
        lane = "tail" if "tail" in names else names[-1]
        groups["surface_eigen"] = _eigen_plane(risk, lanes, lane, what, **shared)
    return groups


def _eigen_plane(
    risk: ClassRisk,
    lanes: LaneChoice | None,
    lane: str,
    plan: Plan,
    *,
    journal: Journal | None,
    seed: int,
    group_average: GroupAverage,
    progress: Progress | None,
) -> xr.Dataset:
    chosen = lanes_of(risk, lanes, group_average=group_average)
    # By weights, not by name: a mixture has no name to look up, and the average of a group is the caller's choice.
    weights = chosen.weights[chosen.names.index(lane)]
    axes = eigen_axes(risk, {lane: weights.tolist()}, options=plan.spectrum, seed=seed)
    axis = np.linspace(-1, 1, plan.eigen_points)
    named = journal.renamed(f"eigen-{lane}") if journal is not None else None
    dataset = measure_surface(
        risk,
        lanes,
        kind="plane",
        directions=axes.vectors,
        x=axis,
        y=axis,
        labels=axes.labels,
        seed=seed,
        group_average=group_average,
        journal=named,
        progress=progress,
    )
    dataset.attrs |= dict(axes.attributes)
    return dataset


# Columns of the summary, each followed by its errors: before and after the ratios of the extremes.
_EXTREMES = (
    "loss",
    "gradient_norm",
    "lambda_min",
    "lambda_min_residual",
    "lambda_min_error",
    "noise_floor",
    "precision_gap",
    "lambda_min_lower_bound",
    "lambda_max",
    "lambda_max_residual",
    "lambda_max_error",
)
_CONTEXT = (
    "trace",
    "trace_stderr",
    "trace_low",
    "trace_high",
    "negative_energy",
    "negative_energy_stderr",
    "negative_energy_low",
    "negative_energy_high",
    "negative_mass",
    "negative_mass_low",
    "negative_mass_high",
    "index_lower_bound",
    "crossover_radius",
    "quadratic_radius",
    "decrease_along_v",
    "decrease_along_gradient",
    "gauss_newton_curvature",
    "functional_curvature",
    "curvature_low",
    "curvature_high",
    "repeat_error",
    "symmetry_error",
    "linearity_error",
    "additivity_error",
    "num_hvps",
)


def summarise(groups: Mapping[str, xr.Dataset]) -> pd.DataFrame:
    """Return one row per lane from the groups of a results file: numbers with their errors, verdict, evidence.

    Columns that a missing group would fill are absent.
    """
    if "spectrum" not in groups:
        raise LandscapeError("a summary needs the group 'spectrum': measure it first")
    spectrum = groups["spectrum"]
    columns: dict[str, np.ndarray] = {"num_examples": spectrum.num_examples.values}
    if "accuracy" in groups:
        accuracy = groups["accuracy"]
        columns["accuracy"] = accuracy.accuracy.values
        for name in ("test_accuracy", "test_accuracy_stderr"):
            if name in accuracy:
                columns[name] = accuracy[name].values
    for name in _EXTREMES:
        if name in spectrum:
            columns[name] = spectrum[name].values
    with np.errstate(divide="ignore", invalid="ignore"):
        columns["ratio"] = np.abs(spectrum.lambda_min.values) / spectrum.lambda_max.values
        columns["lambda_min_over_gradient"] = np.abs(spectrum.lambda_min.values) / spectrum.gradient_norm.values
    for name in _CONTEXT:
        if name in spectrum:
            columns[name] = spectrum[name].values
    if "perturbation" in groups:
        perturbation = groups["perturbation"]
        radius = float(perturbation.radius.values[len(perturbation.radius) // 2])
        columns["mean_increase_radius"] = np.full(perturbation.sizes["lane"], radius)
        columns["mean_increase"] = perturbation.mean_increase.sel(radius=radius).values
        columns["mean_increase_stderr"] = perturbation.mean_increase_stderr.sel(radius=radius).values
        if perturbation.sizes["rho"]:
            columns["worst_case_rho"] = np.full(perturbation.sizes["lane"], float(perturbation.rho[0]))
            columns["worst_case_increase"] = perturbation.worst_case_increase.values[:, 0]
    columns["verdict"] = spectrum.verdict.values
    columns["evidence"] = spectrum.evidence.values
    return pd.DataFrame(columns, index=pd.Index([str(name) for name in spectrum.lane.values], name="lane"))


def diagnose(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    preset: str = "quick",
    seed: int = 0,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """Run all three analyses and return one row per lane: numbers with errors, the verdict and its evidence.

    Parameters
    ----------
    risk, lanes, seed, progress
        As in :func:`landscape.spectrum.measure_spectrum`.
    preset
        ``quick``, ``standard`` or ``full``.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> saddle = AnalyticRisk(lambda x: (x[0] ** 2 - x[1] ** 2)[None], torch.zeros(2, dtype=torch.float64))
    >>> diagnose(saddle, "all").verdict["all"]
    'saddle'
    """
    return summarise(measure_everything(risk, lanes, plan=choose_plan(preset), seed=seed, progress=progress))


def capped(plan: Plan, image_pixels: int, max_per_class: int | None) -> Plan:
    """Return the plan with the caller's cap on examples per class, or the preset's where images are larger than 16 x 16."""
    if max_per_class is not None:
        return replace(plan, max_per_class=max_per_class)
    return plan if image_pixels > 256 else replace(plan, max_per_class=None)
