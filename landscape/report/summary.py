"""What the page says in words and tables: statements per model, the verdict matrix, one row per lane."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from landscape.figures import preparation as prep
from landscape.figures.style import VERDICT_LOOKS
from landscape.ratios import curvature_over_gradient, curvature_ratio
from landscape.report.evidence import Proof, lane_proof, number, undecided_warnings, why_undecided

VERDICTS = tuple(VERDICT_LOOKS)

GLOSSARY = (
    (
        "lane",
        "one class, one group of classes (head, medium, tail: most to fewest training images), or all classes "
        "together. "
        "Its loss is the average loss over its own examples.",
    ),
    (
        "saddle",
        "a direction is at hand along which the lane's loss curves down, and this curvature outweighs the slope within "
        "the radius where the loss still follows its quadratic model: the crossover radius is below the "
        "quadratic radius.",
    ),
    (
        "slope",
        "the same certified negative curvature, but the gradient outweighs it: the weights are not at a "
        "stationary point "
        "of this lane, the loss simply still falls downhill.",
    ),
    (
        "no negative curvature",
        "with the stated probability no eigenvalue lies below the stated bound, which is negligible "
        "against λmax. It is not a proof that the point is a minimum.",
    ),
    (
        "undecided",
        "neither negative curvature nor its absence is certified; the evidence says what would decide: more Lanczos "
        "steps, or, where rounding is the limit, float64.",
    ),
    (
        "refused",
        "the data were augmented anew at every Hessian product, so there is no one matrix whose eigenvalues these could "
        "be; nothing can be said about the sign of its curvature.",
    ),
    (
        "λmin, λmax ± error",
        "smallest and largest eigenvalue of the lane's Hessian, each with an error that holds the end itself (with the "
        "stated probability over the random starts), not just some eigenvalue; ≤ or ≥ where only one side is known.",
    ),
    (
        "error bars",
        "residuals are guaranteed; intervals of negative energy, mass and trace are over random probes (the trace of a "
        "piecewise linear network has none: its error is rounding and an allowance for what was left out), that of the "
        "curvature along v_min over images: would other images of the class show it?",
    ),
    (
        "operator",
        "before anything is measured the Hessian product must repeat, be symmetric and linear, and the classes must add "
        "up to their group; errors are relative, at rounding.",
    ),
    ("ratio", "max(−λmin, 0) / λmax; never read alone, it also rises when λmax falls."),
    ("lower bound", "the true smallest eigenvalue lies above it with the stated probability."),
    (
        "negative energy",
        "share of the Hessian's absolute trace on negative eigenvalues, from raw nodes and weights; 0 is convex, 0.5 "
        "balanced.",
    ),
    (
        "crossover radius",
        "2 |g| / |λmin|: how far one must walk until curvature lowers the loss more than the slope does.",
    ),
    ("quadratic radius", "how far the loss along the direction of λmin follows its quadratic model."),
    (
        "best own decrease along ±v_min",
        "how far the lane's own loss falls at the best of the steps walked along its most negative direction, to either side; "
        "the standard error is over images, the same at both points. Affordable: the same among steps at which no group, nor "
        "the whole, loses more than a tenth of what the lane gains.",
    ),
    (
        "mean increase, worst-case increase",
        "rise of the loss under random filter-normalised changes of the weights, and the largest "
        "rise found within an L2 radius ρ. In networks with kinks (ReLU, max pooling) neither follows from the trace or λmax at "
        "any radius: kinks carry curvature that the Hessian at the weights does not hold.",
    ),
)


@dataclass(frozen=True)
class Statement:
    """What is said about one lane."""

    lane: str
    verdict: str
    sentence: str
    evidence: str
    proof: Proof = ()


@dataclass(frozen=True)
class ModelSummary:
    """What is said about one model: its groups in sentences, its classes by verdict."""

    name: str
    headline: str
    groups: tuple[Statement, ...]
    classes: tuple[tuple[str, tuple[str, ...]], ...]


def summarise(name: str, spectrum: xr.Dataset) -> ModelSummary:
    """Return the statements about one model.

    Parameters
    ----------
    name
        The model's name, usually its optimizer.
    spectrum
        Its ``spectrum`` Dataset.

    Returns
    -------
    ModelSummary
    """
    classes = prep.class_lanes(spectrum)
    others = [lane for lane in prep.all_lanes([spectrum]) if lane not in classes]
    by_verdict = _by_verdict(spectrum, classes)
    counted = [f"{len(lanes)} {_plural(verdict, len(lanes))}" for verdict, lanes in by_verdict if lanes]
    headline = ""
    if classes:
        headline = f"Of {len(classes)} {'class' if len(classes) == 1 else 'classes'}: {', '.join(counted)}."
    return ModelSummary(
        name,
        headline,
        tuple(_statement(spectrum, lane) for lane in others or classes),
        tuple(v for v in by_verdict if v[1]),
    )


def overview(spectra: Mapping[str, xr.Dataset]) -> list[str]:
    """Return one sentence per group: under which optimizer it has which verdict."""
    sentences = []
    lanes = [lane for lane in prep.all_lanes(spectra.values()) if lane in ("head", "medium", "tail", "all")]
    for lane in lanes:
        found: dict[str, list[str]] = {}
        for name, dataset in spectra.items():
            if lane in prep.all_lanes([dataset]):
                found.setdefault(str(dataset["verdict"].sel(lane=lane).item()), []).append(name)
        subject = "All classes together" if lane == "all" else f"The {lane} classes"
        parts = []
        for verdict in VERDICTS:
            if verdict in found:
                models = found[verdict]
                scope = "under every optimizer" if len(models) == len(spectra) > 1 else f"under {_listed(models)}"
                parts.append(f"{_state(verdict)} {scope if any(models) else ''}".strip())
        sentences.append(f"{subject}: {'; '.join(parts)}.")
    return sentences


def lane_rows(tree: xr.DataTree) -> tuple[list[str], list[list[str]]]:
    """Return (column heads, rows of text): one row per lane, with everything that was measured about it."""
    spectrum = _group(tree, "spectrum")
    if spectrum is None:
        return [], []
    classes = prep.class_lanes(spectrum)
    lanes = [*classes, *(lane for lane in prep.all_lanes([spectrum]) if lane not in classes)]
    groups = {name: _group(tree, name) for name in ("accuracy", "perturbation", "escape")}
    rows = [_row(lane, spectrum, groups) for lane in lanes]
    return list(rows[0]) if rows else [], [list(row.values()) for row in rows]


def _row(lane: str, spectrum: xr.Dataset, groups: Mapping[str, xr.Dataset | None]) -> dict[str, str]:
    """Return {column head: text} for one lane."""
    accuracy, perturbation = groups["accuracy"], groups["perturbation"]

    def measured(variable: str) -> str:
        return prep.short(number(spectrum, variable, lane))

    radius, rho = _middle(perturbation, "radius"), _middle(perturbation, "rho")
    low, high, slope = (number(spectrum, name, lane) for name in ("lambda_min", "lambda_max", "gradient_norm"))
    count = prep.num_examples(spectrum, lane)
    split = str(accuracy.attrs.get("split", "")) if accuracy is not None else ""
    row = {
        "lane": lane,
        "n": "–" if count is None else str(count),
        "loss": measured("loss"),
        f"accuracy{f' ({split})' if split else ''}": _percent(number(accuracy, "accuracy", lane)),
    }
    if accuracy is not None and "test_accuracy" in accuracy:
        row["test accuracy"] = _percent(number(accuracy, "test_accuracy", lane))
    mean = f"mean increase ± se{'' if radius is None else f' (radius {prep.short(radius)})'}"
    worst = f"worst-case increase{'' if rho is None else f' (ρ = {prep.short(rho)})'}"
    return row | {
        "|g|": measured("gradient_norm"),
        "λmin ± error": _end(spectrum, "lambda_min", lane),
        "λmax ± error": _end(spectrum, "lambda_max", lane),
        "ratio": prep.short(float(curvature_ratio(low, high))),
        "|λmin| / |g|": prep.short(float(curvature_over_gradient(low, slope))),
        "lower bound": measured("lambda_min_lower_bound"),
        "trace ± error": _pair(spectrum, "trace", "trace_stderr", lane),
        "negative energy ± se": _pair(spectrum, "negative_energy", "negative_energy_stderr", lane),
        "crossover radius": measured("crossover_radius"),
        "quadratic radius": measured("quadratic_radius"),
        mean: _pair(perturbation, "mean_increase", "mean_increase_stderr", lane, radius=radius),
        worst: prep.short(number(perturbation, "worst_case_increase", lane, rho=rho)),
        **_way_out(groups["escape"], lane),
        "verdict": str(spectrum["verdict"].sel(lane=lane).item()),
        "evidence": _text(spectrum, "evidence", lane),
    }


def _way_out(escape: xr.Dataset | None, lane: str) -> dict[str, str]:
    """Return the columns about the best step along +-v_min, and the best one that costs the others little."""
    if escape is None:
        return {}
    error = number(escape, "increase_at_best_stderr", lane, affected_lane=lane)
    columns = {"best own decrease along ±v_min ± se": prep.with_error(number(escape, "best_decrease", lane), error)}
    columns["its step (|θ|/10)"] = prep.short(number(escape, "best_distance", lane))
    columns["affordable decrease"] = prep.short(number(escape, "affordable_decrease", lane))
    return columns


def lane_proofs(tree: xr.DataTree) -> list[Proof]:
    """Return the proof and the error bars of every lane, in the order of :func:`lane_rows`."""
    spectrum = _group(tree, "spectrum")
    return [] if spectrum is None else [lane_proof(spectrum, row[0]) for row in lane_rows(tree)[1]]


def verdict_matrix(spectra: Mapping[str, xr.Dataset]) -> list[dict[str, Any]]:
    """Return a row per lane, groups first: its name, and per model a verdict with its numbers, None if not measured."""
    first = next(iter(spectra.values()))
    classes = list(dict.fromkeys(lane for d in spectra.values() for lane in prep.class_lanes(d)))
    groups = [lane for lane in prep.all_lanes(spectra.values()) if lane not in classes]
    rows = []
    for lane in [*groups, *classes]:
        cells: list[dict[str, str] | None] = []
        for dataset in spectra.values():
            if lane not in prep.all_lanes([dataset]):
                cells.append(None)
                continue
            low, high = number(dataset, "lambda_min", lane), number(dataset, "lambda_max", lane)
            value = _end(dataset, "lambda_min", lane)
            ratio = prep.short(float(curvature_ratio(low, high)))
            verdict = str(dataset["verdict"].sel(lane=lane).item())
            cells.append(
                {"verdict": verdict, "value": value, "ratio": ratio, "evidence": _text(dataset, "evidence", lane)}
            )
        rows.append({"lane": prep.lane_label(first, lane), "group": lane in groups, "cells": cells})
    return rows


def found_warnings(results: Mapping[str, xr.DataTree]) -> list[str]:
    """Return what a reader must be warned of, as far as the results themselves tell."""
    found = []
    for name, tree in results.items():
        for group in tree.children:
            dataset = tree[group].to_dataset()
            found += [f"{name}, {group}: {text}" for text in _listed_attribute(dataset.attrs.get("warnings"))]
            if group.startswith("surface") and "loss" in dataset:
                loss = dataset["loss"]
                done = dataset["done"] if "done" in dataset else xr.ones_like(loss, dtype=bool)
                missing = int((~done).sum())
                broken = int((done & ~loss.where(abs(loss) < np.inf).notnull().all("lane")).sum())
                if missing:
                    found.append(
                        f"{name}, {group}: {missing} of {done.size} grid points were not computed; they are left open."
                    )
                if broken:
                    found.append(
                        f"{name}, {group}: the loss is not finite at {broken} grid points; they are left open."
                    )
        spectrum = _group(tree, "spectrum")
        if spectrum is None:
            found.append(f"{name}: no spectrum was measured, so there is no verdict.")
        elif "verdict" in spectrum:
            by_verdict = dict(_by_verdict(spectrum, prep.all_lanes([spectrum])))
            for remedy, lanes in undecided_warnings(spectrum, by_verdict["undecided"]):
                found.append(f"{name}: undecided for {_listed(lanes)}; {remedy}.")
            if by_verdict["refused"]:
                refused = _listed(by_verdict["refused"])
                found.append(f"{name}: refused for {refused}; augmentation drawn anew leaves no operator to judge.")
    return found


def _statement(spectrum: xr.Dataset, lane: str) -> Statement:
    verdict = str(spectrum["verdict"].sel(lane=lane).item())
    low = _end(spectrum, "lambda_min", lane)
    high = prep.short(number(spectrum, "lambda_max", lane))
    crossover, quadratic = (prep.short(number(spectrum, f"{key}_radius", lane)) for key in ("crossover", "quadratic"))
    bound = prep.short(number(spectrum, "lambda_min_lower_bound", lane))
    probability = spectrum.attrs.get("lower_bound_probability")
    certain = "the stated probability" if probability is None else f"probability {float(probability):g}"
    holds = f"holds to {quadratic}" if number(spectrum, "quadratic_radius", lane) != 0 else "holds nowhere"
    sentences = {
        "saddle": f"Its loss curves down along a direction that was found (λmin = {low}, against λmax = {high}), and this "
        f"outweighs the slope beyond radius {crossover}, inside the radius {quadratic} where the quadratic model holds.",
        "slope": f"Its loss does curve down along some direction (λmin = {low}, against λmax = {high}), but the gradient "
        f"matters more: curvature would win only beyond radius {crossover}, the quadratic model {holds}.",
        "no negative curvature": f"No direction with noticeable negative curvature: with {certain}, every eigenvalue is "
        f"above {bound} (smallest found: {low}; λmax = {high}).",
        "refused": f"No verdict: the operator changed from product to product, and its smallest Ritz value {low} belongs to "
        "no matrix.",
        "undecided": f"The measurement does not decide: smallest eigenvalue found {low}, bound {bound} with {certain}; "
        f"{why_undecided(spectrum, lane)}.",
    }
    return Statement(
        prep.lane_label(spectrum, lane),
        verdict,
        sentences.get(verdict, ""),
        _text(spectrum, "evidence", lane),
        lane_proof(spectrum, lane),
    )


def _by_verdict(spectrum: xr.Dataset, lanes: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    verdicts = {lane: str(spectrum["verdict"].sel(lane=lane).item()) for lane in lanes}
    return [(word, tuple(lane for lane in lanes if verdicts[lane] == word)) for word in VERDICTS]


def _plural(verdict: str, count: int) -> str:
    words = {"saddle": "at a saddle", "slope": "on a slope", "no negative curvature": "without negative curvature"}
    return words.get(verdict, verdict)


def _state(verdict: str) -> str:
    words = {"saddle": "at a saddle", "slope": "on a slope"}
    return words.get(verdict, verdict)


def _group(tree: xr.DataTree, name: str) -> xr.Dataset | None:
    if name not in tree.children:
        return None
    dataset = tree[name].to_dataset()
    return dataset if dataset.data_vars else None


def _pair(dataset: xr.Dataset | None, variable: str, error: str, lane: str, **at: float | None) -> str:
    return prep.with_error(number(dataset, variable, lane, **at), number(dataset, error, lane, **at))


def _end(spectrum: xr.Dataset, variable: str, lane: str) -> str:
    return prep.end_of_spectrum(spectrum.sel(lane=lane), variable)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if math.isfinite(share) else "–"


def _text(dataset: xr.Dataset, variable: str, lane: str) -> str:
    return str(dataset[variable].sel(lane=lane).item()) if variable in dataset else ""


def _middle(dataset: xr.Dataset | None, dimension: str) -> float | None:
    if dataset is None or dimension not in dataset.coords or dataset.sizes[dimension] == 0:
        return None
    return float(dataset[dimension].values[(dataset.sizes[dimension] - 1) // 2])


def _listed(names: Iterable[str]) -> str:
    words = list(names)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _listed_attribute(value: Any) -> list[str]:
    """Return warnings stored as a list, as its JSON, or as one text."""
    if value is None or (isinstance(value, str) and not value):
        return []
    if isinstance(value, str) and value.startswith("["):
        value = json.loads(value)
    return [str(text) for text in value] if isinstance(value, list | tuple) else [str(value)]
