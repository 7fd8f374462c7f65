"""Spectrum, perturbation and surface of one risk together, and one row per lane that says what they mean."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch
import xarray as xr
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.flatness import measure_flatness
from landscape.perturbation import lane_means, measure_perturbation
from landscape.plan import ESCAPE_RANGE, Plan, choose_plan
from landscape.ratios import curvature_over_gradient, curvature_ratio
from landscape.results import Journal, savable, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, ModelRisk, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.points import Policy
from landscape.spectrum import measure_spectrum
from landscape.surface import eigen_axes, measure_escape, measure_surface

Progress = Callable[[int, int, str], None]


@savable
@precise_arithmetic()
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
    held_out: ModelRisk | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> dict[str, xr.Dataset]:
    """Run every analysis of the plan; return the groups of a results file.

    Parameters
    ----------
    risk, lanes, seed, group_average, journal, progress
        As in :func:`landscape.spectrum.measure_spectrum`.
    plan
        How much of each analysis; by default that of the preset ``standard``.
    held_out
        The same weights on the split that is not under study: its losses are read on the lines in the same walk.

    Returns
    -------
    dict
        ``accuracy``, ``spectrum``, ``perturbation``, ``surface_line``, and with more than one parameter ``surface`` and
        ``surface_eigen``; ``escape`` and ``flatness`` where the plan asks for them (the latter needs lanes that are means of
        their classes). Lines have both BatchNorm policies
        where the plan recalibrates and the network has statistics. Escapes follow the spectrum's own v_min. The
        eigen-plane is spanned by v_min and v_max of the lane ``tail`` (of the last lane where there is no tail), in units
        of a tenth of |theta|: comparable between models whose weights differ in size.
    """
    what = plan or Plan()
    shared: dict[str, Any] = {"seed": seed, "group_average": group_average, "journal": journal, "progress": progress}
    groups = {"accuracy": measure_accuracy(risk, lanes, group_average=group_average)}
    vectors: dict[str, tuple[Tensor, Tensor]] = {}
    groups["spectrum"] = measure_spectrum(risk, lanes, options=what.spectrum, directions=vectors, **shared)
    groups["perturbation"] = measure_perturbation(risk, lanes, options=what.perturbation, **shared)
    groups["surface_line"] = measure_surface(
        risk,
        lanes,
        kind="line",
        x=np.linspace(-1, 1, what.line_points),
        num_pairs=what.line_pairs,
        batchnorm=line_policy(risk, what),
        held_out=held_out,
        quadratic=what.quadratic,
        **shared,
    )
    if what.escape_lengths:
        known = {name: v_min for name, (v_min, _) in vectors.items()}
        lengths = np.geomspace(*ESCAPE_RANGE, what.escape_lengths)
        groups["escape"] = measure_escape(risk, lanes, x=lengths, directions=known, options=what.spectrum, **shared)
    if what.flatness is not None and risk.is_additive:
        groups["flatness"] = measure_flatness(risk, lanes, options=what.flatness, **shared)
    if len(risk.theta) < 2:
        return groups
    axis = np.linspace(-1, 1, what.plane_points)
    groups["surface"] = measure_surface(risk, lanes, kind="plane", x=axis, y=axis, **shared)
    if what.eigen_points:
        names = [str(name) for name in groups["spectrum"].lane.values]
        lane = "tail" if "tail" in names else names[-1]
        groups["surface_eigen"] = _eigen_plane(risk, lanes, lane, what, **shared)
    return groups


def line_policy(risk: ClassRisk, plan: Plan) -> Policy:
    """Return both BatchNorm policies where they are asked for and the network has statistics to recompute."""
    if not plan.recalibrate or not isinstance(risk, ModelRisk) or risk.policy != "frozen":
        return "frozen"
    try:
        risk.with_batchnorm("recalibrate")
    except LandscapeError:
        return "frozen"
    return "both"


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
    "lambda_min_error",
    "lambda_min_low",
    "lambda_min_high",
    "lambda_min_residual",
    "noise_floor",
    "precision_gap",
    "lambda_min_lower_bound",
    "lambda_max",
    "lambda_max_error",
    "lambda_max_low",
    "lambda_max_high",
    "lambda_max_residual",
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

# Steps along +-v_min: the largest decrease of the lane's own loss and its signed length, and the same at little cost to others.
_ESCAPE = ("best_decrease", "best_distance", "affordable_decrease", "affordable_distance")


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
    low = spectrum.lambda_min.values
    columns["ratio"] = curvature_ratio(low, spectrum.lambda_max.values)
    columns["lambda_min_over_gradient"] = curvature_over_gradient(low, spectrum.gradient_norm.values)
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
    if "escape" in groups:
        escape = groups["escape"].reindex(lane=spectrum.lane.values)
        for name in _ESCAPE:
            columns[f"escape_{name}"] = escape[name].values
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
    """Run every analysis of a preset and return one row per lane: numbers with errors, the verdict and its evidence.

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
