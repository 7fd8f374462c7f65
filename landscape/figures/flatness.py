"""Figures of flatness: every measure lane by lane, and curvature against the loss level, which it goes with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures import preparation as prep
from landscape.figures.drawing import render
from landscape.figures.perturbations import value_axis
from landscape.figures.picture import Array, Axis, Backend, Line, Mark, Panel, Picture, Points
from landscape.figures.style import LANE_LOOKS, MUTED, Look, optimizer_looks

_UNGROUPED = Look("#0072B2")
_ACROSS = 3
# An axis is logarithmic where positive values differ by more than this factor; less, to compare it with a loss.
_MANY_TIMES = 30.0
_FEW_TIMES = 5.0
# What stands in a flatness Dataset beside its measures.
_BESIDE = ("loss", "own_loss", "num_examples")
# Error of a curvature that is not named <variable>_stderr.
_ERRORS = {"lambda_max": "lambda_max_error", "lambda_min": "lambda_min_error"}
_SHORT_UNITS = {
    "nats per example": "nats",
    "nats squared": "nats²",
    "nats per example and weight unit": "nats per weight unit",
}
_NAMES = {"lambda_max": "λmax of the lane's Hessian", "trace": "trace of the lane's Hessian"}


def plot_flatness(
    flatness: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    measures: Sequence[str] | None = None,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw every measure of flatness, a small panel each, lanes side by side with their standard errors.

    Parameters
    ----------
    flatness
        A ``flatness`` Dataset, or ``{optimizer: Dataset}``, drawn side by side in the same panels.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default all, or the groups for more than three results.
    measures
        Names of measures; by default all that exist for these risks.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        The scales of the panels differ: lanes are compared within one, never across.

    Raises
    ------
    LandscapeError
        If a measure or lane is unknown, or no measure has a value.
    """
    data = prep.as_mapping(flatness, "gradient_norm")
    chosen = prep.choose_lanes(data, lanes, ("head", "medium", "tail", "all") if len(data) > 3 else ())
    names = _measures(data, measures)
    data = {name: dataset.reindex(lane=chosen) for name, dataset in data.items()}
    labels = prep.thinned([prep.lane_label(next(iter(data.values())), lane) for lane in chosen], 40)
    across = min(_ACROSS, len(names))
    panels = []
    for k, name in enumerate(names):
        marks = _measure_marks(data, name, chosen)
        is_last = k // across == (len(names) - 1) // across
        x = Axis(
            "", limits=(-0.6, len(chosen) - 0.4), categories=labels if is_last else ("",) * len(chosen), tilted=is_last
        )
        y, marks = _scaled(_unit(data, name), marks)
        bound = " (≥)" if "lower bound" in _attribute(data, name, "exactness") else ""
        panels.append(Panel(_title(name) + bound, x, y, marks))
    padded = [*panels, *[None] * (-len(panels) % across)]
    rows = tuple(tuple(padded[k : k + across]) for k in range(0, len(padded), across))
    note = (
        "(≥): lower bounds. Bars: standard error, over pairs of draws, batches or images; exact values and bounds have none. "
        "Lanes stand in the same order in every panel, each of which has its own scale. A well-fitted class is flat in most "
        "of them by its confidence alone."
    )
    size = (min(max(2.7, 0.19 * len(chosen) * max(1.0, 0.5 * len(data))), 5.0), 1.35)
    return render(Picture("Flatness of every lane", rows, prep.scale_card(data), note, panel_size=size), backend)


def plot_curvature_against_loss(
    results: prep.Results,
    *,
    variable: str | None = None,
    lanes: str | Sequence[str] | None = None,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw a curvature against the loss level, a mark per lane and optimizer: the confidence confound.

    Parameters
    ----------
    results
        ``{optimizer: Dataset}`` or one Dataset, of a spectrum or of flatness.
    variable
        What stands on the vertical axis: ``"lambda_max"``, ``"trace"`` or any measure of flatness; by default
        ``lambda_max``, or ``mean_increase`` where there is none.
    lanes
        Lane names, ``"classes"`` (default), ``"groups"`` or ``"every"``.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Both axes logarithmic where all values are positive (a vertical range of less than a factor of five is linear), with
        the least-squares line of the logarithms. For softmax cross-entropy curvature falls with p (1 - p), hence with the
        loss: only what lies off the line can be called sharpness.

    Raises
    ------
    LandscapeError
        If the variable is not in the results, or there is nothing to draw.
    """
    data = prep.as_mapping(results, "loss")
    first = next(iter(data.values()))
    name = variable or ("lambda_max" if "lambda_max" in first else "mean_increase")
    data = prep.as_mapping(data, name)
    classes = list(dict.fromkeys(lane for dataset in data.values() for lane in prep.class_lanes(dataset)))
    chosen = prep.choose_lanes(data, lanes, classes)
    marks, x, y, missing = _against_loss(data, name, chosen)
    if x.size == 0:
        raise LandscapeError(f"expected a lane with a loss and a '{name}', got none: there is nothing to draw")
    label = _NAMES.get(name, _title(name))
    text = ""
    drawn = tuple(marks)
    x_axis = Axis(_LOSS, limits=prep.padded(x.min(), x.max(), 0.08))
    if (x > 0).all():
        x_axis = Axis(_LOSS, "log", prep.padded(x.min(), x.max(), 0.08, log=True))
        if (y > 0).all():
            line, text = _fit(x, y)
            drawn = (*line, *marks)
    y_axis, drawn = _scaled(label, drawn, _FEW_TIMES)
    note = "A class that is fitted with more confidence has less curvature by that alone; compare at equal loss."
    note += f" Lanes without a value: {missing}." if missing else ""
    panel = Panel(text, x_axis, y_axis, drawn)
    title = "Curvature against loss level"
    return render(Picture(title, ((panel,),), prep.scale_card(data), note, panel_size=(5.2, 3.8)), backend)


_LOSS = "loss of the lane, nats per example"


def _measures(data: Mapping[str, xr.Dataset], wanted: Sequence[str] | None) -> list[str]:
    """Return the measures to draw: those with a finite value somewhere, as stored."""
    stored = list(dict.fromkeys(str(v) for dataset in data.values() for v in dataset.data_vars))
    known = [v for v in stored if v not in _BESIDE and not v.endswith(("_stderr", "_batch_size", "_num_batches"))]
    known = [
        v for v in known if all(d[v].dims == ("lane",) and d[v].dtype.kind == "f" for d in data.values() if v in d)
    ]
    for name in wanted or ():
        if name not in known:
            raise unknown_name("measure of flatness", name, known)
    there = [v for v in wanted or known if any(v in d and bool(np.isfinite(d[v].values).any()) for d in data.values())]
    if not there:
        raise LandscapeError(f"expected a measure with a value, got none of {', '.join(wanted or known)}")
    return there


def _measure_marks(data: Mapping[str, xr.Dataset], name: str, lanes: Sequence[str]) -> tuple[Mark, ...]:
    looks = optimizer_looks(list(data))
    width = 0.8 / len(data)
    marks: list[Mark] = []
    for k, (title, dataset) in enumerate(data.items()):
        if name not in dataset:
            continue
        centre = np.arange(len(lanes)) + (k - (len(data) - 1) / 2) * width
        values, errors = dataset[name].values, _error_of(dataset, name)
        for group, members in _by_group(dataset, lanes).items():
            at = np.array([list(lanes).index(lane) for lane in members])
            look = LANE_LOOKS.get(group, _UNGROUPED) if len(data) == 1 else looks[title]
            label = (group if group in LANE_LOOKS else "") if len(data) == 1 else title
            hover = tuple(f"{title or 'lane'} {lanes[i]}: {prep.with_error(values[i], errors[i])}" for i in at)
            bars = _bars(errors[at])
            marks.append(Points(centre[at], values[at], look.colour, look.marker, label, 3.6, 0.95, bars, hover))
    return tuple(marks)


def _against_loss(
    data: Mapping[str, xr.Dataset], name: str, lanes: Sequence[str]
) -> tuple[list[Mark], Array, Array, int]:
    """Return the marks with their legend, the losses and values that are drawn, and how many lanes have none."""
    looks = optimizer_looks(list(data))
    marks: list[Mark] = []
    x: list[Array] = []
    y: list[Array] = []
    groups, missing = [], 0
    for title, dataset in data.items():
        for group, members in _by_group(dataset, lanes).items():
            part = dataset.sel(lane=members)
            loss, value, error = part["loss"].values, part[name].values, _error_of(part, name)
            kept = np.isfinite(loss) & np.isfinite(value)
            missing += int((~kept).sum())
            marker = LANE_LOOKS[group].marker if group in LANE_LOOKS else "x"
            hover = tuple(
                f"{title or 'lane'} {lane}: loss {prep.short(a)}, {prep.with_error(b, e)}"
                for lane, a, b, e, k in zip(members, loss, value, error, kept)
                if k
            )
            bars = _bars(error[kept])
            marks.append(Points(loss[kept], value[kept], looks[title].colour, marker, "", 5.5, 0.85, bars, hover))
            x.append(loss[kept])
            y.append(value[kept])
            groups.append(group)
    return [*marks, *_legend(list(data), groups, looks)], np.concatenate(x), np.concatenate(y), missing


def _by_group(dataset: xr.Dataset, lanes: Sequence[str]) -> dict[str, list[str]]:
    """Return the lanes of each group that the dataset has."""
    known = set(prep.all_lanes([dataset]))
    groups: dict[str, list[str]] = {}
    for lane in lanes:
        if lane in known:
            group = prep.lane_group(dataset, lane)
            groups.setdefault(group if group in LANE_LOOKS else "", []).append(lane)
    return groups


def _error_of(dataset: xr.Dataset, name: str) -> Array:
    key = _ERRORS.get(name, f"{name}_stderr")
    return dataset[key].values if key in dataset else np.full(dataset.sizes["lane"], np.nan)


def _legend(optimizers: Sequence[str], groups: Sequence[str], looks: Mapping[str, Look]) -> list[Mark]:
    nowhere = np.array([np.nan])
    lines: list[Mark] = [Line(nowhere, nowhere, looks[name].colour, name, width=4.0) for name in optimizers if name]
    named = {"all": "all"} | {group: f"{group} classes" for group in ("head", "medium", "tail")}
    lines += [
        Points(nowhere, nowhere, MUTED, LANE_LOOKS[group].marker, named[group])
        for group in LANE_LOOKS
        if group in groups
    ]
    return lines


def _fit(x: Array, y: Array) -> tuple[list[Mark], str]:
    """Return the least-squares line of the logarithms and what it says; nothing for fewer than three losses."""
    if np.unique(x).size < 3:
        return [], ""
    slope, offset = np.polyfit(np.log10(x), np.log10(y), 1)
    correlation = np.corrcoef(np.log10(x), np.log10(y))[0, 1]
    ends = np.geomspace(*prep.padded(x.min(), x.max(), 0.04, log=True), 60)
    line = Line(ends, 10**offset * ends**slope, MUTED, "", "dash", "", 1.2)
    return [line], f"{prep.short(10**offset)} · loss^{slope:.2f}, R² = {correlation**2:.2f}, {x.size} lanes"


def _clipped(mark: Mark) -> Mark:
    """Return points whose bars end above zero, as a logarithmic axis wants them."""
    if not isinstance(mark, Points) or mark.error is None:
        return mark
    below = np.minimum(mark.error, 0.9 * mark.y)
    return Points(
        mark.x, mark.y, mark.colour, mark.marker, mark.label, mark.size, mark.alpha, np.stack([below, mark.error]),
        mark.hover,
    )  # fmt: skip


def _log_limits(marks: Sequence[Mark]) -> tuple[float, float]:
    ends: list[Array] = []
    for mark in marks:
        if isinstance(mark, Points):
            below, above = (0.0, 0.0) if mark.error is None else mark.error
            ends += [mark.y - below, mark.y + above]
    return prep.padded(*prep.finite_range(ends), 0.08, log=True)


def _scaled(label: str, marks: tuple[Mark, ...], least: float = _MANY_TIMES) -> tuple[Axis, tuple[Mark, ...]]:
    """Return the axis for values of one sign or of both, and the marks that it can hold."""
    values = np.concatenate([mark.y for mark in marks if isinstance(mark, Points)] or [np.zeros(1)])
    values = values[np.isfinite(values)]
    if values.size and values.min() > 0 and values.max() > least * values.min():
        clipped = tuple(map(_clipped, marks))
        return Axis(label, "log", _log_limits(clipped)), clipped
    return value_axis(label, marks), marks


def _bars(errors: Array) -> Array | None:
    """Return the errors, 0 where one is not known; None where none is."""
    return np.nan_to_num(errors) if np.isfinite(errors).any() else None


def _title(name: str) -> str:
    return name.replace("_", " ")


def _attribute(data: Mapping[str, xr.Dataset], name: str, key: str) -> str:
    found = (str(dataset[name].attrs.get(key, "")) for dataset in data.values() if name in dataset)
    return next((text for text in found if text), "")


def _unit(data: Mapping[str, xr.Dataset], name: str) -> str:
    unit = _attribute(data, name, "units")
    return _SHORT_UNITS.get(unit, unit)
