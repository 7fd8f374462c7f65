"""Figures of what v_min means: what following it does to every lane, and what its curvature is made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from landscape.figures import preparation as prep
from landscape.figures.drawing import render
from landscape.figures.overlaps import matrix_panel, matrix_side
from landscape.figures.perturbations import value_axis
from landscape.figures.picture import Axis, Backend, Bars, ColourScale, Panel, Picture, Points, symlog_ticks
from landscape.figures.style import INK

# Falling losses are blue, rising ones red: both ends are told apart by every kind of colour vision.
DIVERGING = "RdBu_r"
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
        _diverging_scale(drawn),
        (side * 1.15, side),
    )
    return render(picture, backend)


def _diverging_scale(drawn: Sequence[Any]) -> ColourScale:
    """Return a scale around zero that is linear up to the lower quartile of the changes."""
    sizes = np.abs(np.concatenate([z.ravel() for z in drawn]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    most = float(sizes.max()) if sizes.size else 1.0
    within = 10.0 ** np.floor(np.log10(float(np.quantile(sizes, 0.25)))) if sizes.size else 1.0
    within = float(max(within, most * 1e-4))
    ticks = tuple(symlog_ticks(-most, most, within))
    return ColourScale("change of the loss", -most, most, ticks=ticks, linear_within=within, colour_map=DIVERGING)


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
