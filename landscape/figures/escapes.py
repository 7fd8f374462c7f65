"""Figures of what v_min means: what following it does to every lane, and what its curvature is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from landscape.errors import unknown_name
from landscape.figures import preparation as prep
from landscape.figures.drawing import render
from landscape.figures.overlaps import matrix_panel, matrix_side, number
from landscape.figures.perturbations import value_axis
from landscape.figures.picture import Array, Axis, Backend, Bars, Heat, Panel, Picture, Points
from landscape.figures.style import INK

_WALKS = (("escape_along_v", "along v_min"), ("escape_along_gradient", "along −gradient, same length"))
_PARTS = (
    ("gauss_newton_curvature", "v'Gv, of the loss", "#56B4E9", ""),
    ("functional_curvature", "v'Fv, of the network", "#D55E00", "///"),
)


def plot_escapes(
    spectrum: prep.Results, *, lanes: str | Sequence[str] | None = "every", backend: Backend = "matplotlib"
) -> Any:
    """Draw what following a lane's v_min to its quadratic radius does to the loss of every lane, beside -gradient.

    Parameters
    ----------
    spectrum
        A ``spectrum`` Dataset with ``escape_along_v`` and ``escape_along_gradient`` (lane, affected_lane), or
        ``{optimizer: Dataset}``: a row of panels each.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"`` (default).
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        One colour scale, linear near zero and logarithmic beyond; lanes that nobody walked are open.
    """
    data = prep.as_mapping(spectrum, "escape_along_v")
    chosen = prep.choose_lanes(data, lanes, ())
    rows, drawn = [], []
    for name, dataset in data.items():
        row: list[Panel | None] = []
        for variable, title in _WALKS:
            z = dataset[variable].reindex(lane=chosen, affected_lane=chosen).values
            drawn.append(z)
            heading = " · ".join(text for text in (name, title) if text)
            row.append(matrix_panel(heading, chosen, chosen, z, is_first=not row, x_label="change of this lane's loss"))
        rows.append(tuple(row))
    side = matrix_side(len(chosen))
    note = (
        "Row: whose direction is followed, v_min on its better side up to its quadratic radius; column: whose loss changes "
        "(blue falls, red rises). Grey: not walked, the lane has no certified negative curvature."
    )
    picture = Picture(
        "Escapes: what a step along one lane's direction does to every lane",
        tuple(rows),
        prep.scale_card(data),
        note,
        prep.diverging_scale(drawn, "change of the loss"),
        (side * 1.15, side),
    )
    return render(picture, backend)


def plot_escape_matrix(
    escape: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    at: Literal["best", "affordable"] = "best",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw what the best step along each class's +-v_min does to itself and to every group, and what it gains.

    Parameters
    ----------
    escape
        A Dataset of :func:`landscape.surface.measure_escape`, or ``{optimizer: Dataset}``: a row of panels each.
    lanes
        Rows: lane names or ``"classes"``, ``"groups"``, ``"every"``; by default the classes from head to tail.
    at
        Which step the matrix shows: ``"best"`` for the class itself, or the best ``"affordable"`` one, at which no group
        loses more than a tenth of what the class gains.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Left, a row per class, columns for its own loss and each group's: the change of the loss, in parentheses where it
        is within two standard errors over images. Middle: the best decrease of the own loss, with its standard error, and
        that along -gradient at the same length. Right: the signed length of the best step. Diamonds: the affordable step.
    """
    if at not in ("best", "affordable"):
        raise unknown_name("step", at, ["best", "affordable"])
    data = prep.as_mapping(escape, f"increase_at_{at}")
    classes = dict.fromkeys(lane for dataset in data.values() for lane in prep.class_lanes(dataset))
    chosen = prep.choose_lanes(data, lanes, list(classes))
    matrices = {name: _escape_matrix(dataset, chosen, at) for name, dataset in data.items()}
    scale = prep.diverging_scale([z for z, _, _ in matrices.values()], "change of the loss, nats per example")
    gains = {name: _gain_marks(dataset.reindex(lane=chosen)) for name, dataset in data.items()}
    bars = [mark for marks in gains.values() for mark in marks if isinstance(mark, Bars)]
    gain_axis = value_axis("decrease of its own loss", bars)
    rows = []
    for name, dataset in data.items():
        z, errors, columns = matrices[name]
        names = [prep.lane_label(dataset, lane) for lane in chosen]
        matrix = matrix_panel(name or "change of the loss of ...", names, columns, z, is_first=True)
        told = tuple(tuple(_in_doubt(*pair) for pair in zip(*row)) for row in zip(z, errors))
        cells = matrix.marks[0]
        assert isinstance(cells, Heat)
        marks = (replace(cells, texts=told if cells.texts else (), hover=_with_errors(names, columns, z, errors)),)
        aligned = replace(matrix.y, categories=("",) * len(chosen))
        far = _distance_marks(dataset.reindex(lane=chosen))
        units = str(dataset["step"].attrs.get("units", ""))
        length = value_axis("signed length of that step" + (f"\n[{units}]" if units else ""), far[:1])
        rows.append(
            (
                replace(matrix, marks=marks, colours=scale),
                Panel("best decrease", gain_axis, aligned, gains[name]),
                Panel("best step", length, aligned, far),
            )
        )
    side = matrix_side(len(chosen))
    which = {"best": "the best of the steps walked", "affordable": "the best affordable one of the steps walked"}[at]
    note = (
        f"Row: the class whose v_min is followed, on its better side, to {which} (a lower bound of the decrease). "
        "Affordable: no group, nor the whole, loses more than a tenth of what the class gains. Parentheses: within two "
        "standard errors over images (paired). + is down the class's own slope. A class is part of its group and of all."
    )
    picture = Picture(
        f"Ways out: what the best {'affordable ' * (at == 'affordable')}step along each class's v_min does",
        tuple(rows),
        prep.scale_card(data, lanes=["head", "medium", "tail", "all"]),
        note,
        panel_size=(2.3, side * 0.8),
    )
    return render(picture, backend)


def _escape_matrix(dataset: xr.Dataset, lanes: Sequence[str], at: str) -> tuple[Array, Array, list[str]]:
    """Return the changes and their errors (lanes, columns) with the columns: own, every group, the whole."""
    kinds = dict(zip(dataset["affected_lane"].values.tolist(), dataset["affected_kind"].values.tolist()))
    shared = [name for name, kind in kinds.items() if kind in ("group", "all")]
    found = []
    for key in (f"increase_at_{at}", f"increase_at_{at}_stderr"):
        if key not in dataset:
            found.append(np.full((len(lanes), 1 + len(shared)), np.nan))
            continue
        values = dataset[key].reindex(lane=list(lanes))
        own = [float(values.sel(lane=lane, affected_lane=lane)) for lane in lanes]
        found.append(np.column_stack([own, values.sel(affected_lane=shared).values]))
    return found[0], found[1], ["own", *shared]


def _in_doubt(value: float, error: float) -> str:
    """Return a cell's text: two digits, small numbers with their exponent, in parentheses within two standard errors."""
    text = (
        number(value)
        if value == 0 or abs(value) >= 0.0095 or not np.isfinite(value)
        else prep.short(float(f"{value:.0e}"))
    )
    return f"({text})" if text and np.isfinite(error) and 0 < abs(value) <= 2 * error else text


def _with_errors(rows: Sequence[str], columns: Sequence[str], z: Array, errors: Array) -> tuple[tuple[str, ...], ...]:
    return tuple(
        tuple(f"{a}, loss of {b}: {prep.with_error(v, e)}" for b, v, e in zip(columns, zs, es))
        for a, zs, es in zip(rows, z, errors)
    )


def _distance_marks(dataset: xr.Dataset) -> tuple[Bars | Points, ...]:
    at = np.arange(dataset.sizes["lane"], dtype=float)
    bars = Bars(at, np.nan_to_num(dataset["best_distance"].values), 0.6, "#009E73", "...", horizontal=True)
    if "affordable_distance" not in dataset:
        return (bars,)
    return bars, Points(dataset["affordable_distance"].values, at, INK, "diamond", "", 3.6)


def _gain_marks(dataset: xr.Dataset) -> tuple[Bars | Points, ...]:
    """Return horizontal bars of the best decrease along v_min, and of that along -gradient at the same length."""
    at = np.arange(dataset.sizes["lane"], dtype=float)
    lanes = dataset["lane"].values.tolist()

    def own(key: str) -> Array:
        return np.array([float(dataset[key].sel(lane=lane, affected_lane=lane)) for lane in lanes])

    error = np.nan_to_num(own("increase_at_best_stderr")) if "increase_at_best_stderr" in dataset else None
    gain = np.nan_to_num(dataset["best_decrease"].values)
    marks: list[Bars | Points] = [Bars(at - 0.19, gain, 0.36, "#0072B2", "", "along ±v_min", error, horizontal=True)]
    if "gradient_increase_at_best" in dataset:
        down = np.nan_to_num(-own("gradient_increase_at_best"))
        marks.append(Bars(at + 0.19, down, 0.36, "#E69F00", "///", "along −gradient, same length", horizontal=True))
    if "affordable_decrease" in dataset:
        cheap = dataset["affordable_decrease"].values
        marks.append(Points(cheap, at - 0.19, INK, "diamond", "affordable, along ±v_min", 3.6))
    return tuple(marks)


def plot_curvature_split(
    spectrum: prep.Results, *, lanes: str | Sequence[str] | None = "every", backend: Backend = "matplotlib"
) -> Any:
    """Draw the curvature along v_min as the sum of the Gauss-Newton part and the network's own, with its image interval.

    Parameters
    ----------
    spectrum
        A ``spectrum`` Dataset with ``gauss_newton_curvature`` and ``functional_curvature`` (lane), or
        ``{optimizer: Dataset}``: a panel each.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"`` (default).
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Two bars per lane, and their sum with its 95 % interval over images.
    """
    data = prep.as_mapping(spectrum, "gauss_newton_curvature")
    chosen = prep.choose_lanes(data, lanes, ())
    drawn = {name: _split_marks(dataset.reindex(lane=chosen)) for name, dataset in data.items()}
    y = value_axis("curvature along v_min", [mark for marks in drawn.values() for mark in marks])
    panels = []
    for k, (name, dataset) in enumerate(data.items()):
        labels = [prep.lane_label(dataset, lane) for lane in chosen]
        is_last = k == len(data) - 1
        names = prep.thinned(labels, 40) if is_last else ("",) * len(chosen)
        x = Axis("", limits=(-0.6, len(chosen) - 0.4), categories=names, tilted=is_last)
        panels.append((Panel(name, x, y, drawn[name]),))
    note = (
        "v'Hv = v'Gv + v'Fv: G is convex where the loss is convex in the logits, so negative curvature comes from F. "
        "Mark: v'Hv = λmin with its 95 % interval over images (v_min as found on all of them)."
    )
    size = (min(max(6.0, 0.34 * len(chosen)), 14.0), 2.6)
    title = "What the most negative curvature is made of"
    return render(Picture(title, tuple(panels), prep.scale_card(data), note, panel_size=size), backend)


def _split_marks(dataset: Any) -> tuple[Bars | Points, ...]:
    at = np.arange(dataset.sizes["lane"], dtype=float)
    marks: list[Bars | Points] = [
        Bars(at + shift, np.nan_to_num(dataset[key].values), 0.36, colour, hatch, label)
        for (key, label, colour, hatch), shift in zip(_PARTS, (-0.19, 0.19))
    ]
    low = dataset["lambda_min"].values
    error = np.zeros((2, len(low)))
    if "curvature_low" in dataset:
        error = np.stack([low - dataset["curvature_low"].values, dataset["curvature_high"].values - low])
    hover = tuple(
        f"{lane}: λmin {prep.short(value)}, images {prep.interval(value - below, value + above)}"
        for lane, value, below, above in zip(dataset["lane"].values, low, *error)
    )
    error = np.maximum(np.nan_to_num(error), 0.0)
    return (
        *marks,
        Points(
            at, low, INK, "diamond", "v'Hv, interval over images", 4.0 if len(low) <= 40 else 2.2, 1.0, error, hover
        ),
    )
