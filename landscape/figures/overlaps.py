"""Figures of what lanes share: their extreme eigenvectors with each other, with class gradients, and with layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.figures import preparation as prep
from landscape.figures.drawing import render
from landscape.figures.picture import Array, Axis, Backend, ColourScale, Heat, Panel, Picture

# Up to so many rows and columns the numbers stand in their cells.
MOST_NUMBERS = 16
# Up to so many cells the page says each one's number beside the pointer.
MOST_HOVERED = 2500
# Names that remain legible beside and below a matrix.
MOST_ROWS, MOST_COLUMNS = 40, 30

_OVERLAPS = (
    ("overlap_v_min", "other_lane", "v_min of two lanes"),
    ("overlap_v_max", "other_lane", "v_max of two lanes"),
    ("overlap_gradient_v_max", "class_name", "v_max and a class's gradient"),
)


def plot_overlaps(
    spectrum: prep.Results, *, lanes: str | Sequence[str] | None = "every", backend: Backend = "matplotlib"
) -> Any:
    """Draw the squared cosines between lanes' extreme eigenvectors, and between v_max and the classes' mean gradients.

    Parameters
    ----------
    spectrum
        A ``spectrum`` Dataset with ``overlap_v_min``, ``overlap_v_max`` (lane, other_lane) and ``overlap_gradient_v_max``
        (lane, class_name), or ``{optimizer: Dataset}``: a row of panels each.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"`` (default).
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
    """
    data = prep.as_mapping(spectrum, "overlap_v_min")
    chosen = prep.choose_lanes(data, lanes, ())
    rows = []
    for name, dataset in data.items():
        row: list[Panel | None] = []
        for variable, dimension, title in _OVERLAPS:
            if variable not in dataset:
                row.append(None)
                continue
            columns = chosen if dimension == "other_lane" else _classes(dataset)
            z = dataset[variable].reindex({"lane": chosen, dimension: columns}).values
            heading = " · ".join(text for text in (name, title) if text)
            row.append(matrix_panel(heading, chosen, columns, z, is_first=not row))
        rows.append(tuple(row))
    scale = ColourScale("squared cosine", 0.0, 1.0)
    note = (
        "Squared cosine of two unit vectors: the share of one that lies along the other; 1/n for random directions. "
        "Grey: not known."
    )
    side = matrix_side(len(chosen))
    title = "What the lanes' extreme directions have in common"
    return render(Picture(title, tuple(rows), prep.scale_card(data), note, scale, (side, side), linked=False), backend)


def plot_layer_mass(
    spectrum: prep.Results, *, lanes: str | Sequence[str] | None = "every", backend: Backend = "matplotlib"
) -> Any:
    """Draw in which layers each lane's v_min has its mass: the sum of squared entries per layer.

    Parameters
    ----------
    spectrum
        A ``spectrum`` Dataset with ``v_min_mass`` (lane, parameter) and the coordinate ``parameter_layer``, or
        ``{optimizer: Dataset}``: a panel each.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"`` (default).
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        A row per lane, a column per layer in the order of the network; rows sum to one.
    """
    data = prep.as_mapping(spectrum, "v_min_mass")
    chosen = prep.choose_lanes(data, lanes, ())
    rows, high, widest = [], 0.0, 1
    for name, dataset in data.items():
        layers, mass = layer_mass(dataset)
        z = xr.DataArray(mass, {"lane": dataset["lane"].values}, ("lane", "layer")).reindex(lane=chosen).values
        high, widest = max(high, prep.finite_range([z])[1]), max(widest, len(layers))
        rows.append((matrix_panel(name, chosen, layers, z, is_first=True),))
    scale = ColourScale("share of |v_min|²", 0.0, high or 1.0)
    size = (min(max(4.6, 0.24 * widest + 1.6), 12.0), matrix_side(len(chosen)) * 0.85 + 0.4)
    note = "Layers in the order of the network, weight and bias together; each row sums to 1."
    return render(
        Picture("Where in the network v_min lies", tuple(rows), prep.scale_card(data), note, scale, size), backend
    )


def layer_mass(dataset: xr.Dataset) -> tuple[list[str], Array]:
    """Return the layers and the mass (L, number of layers) of v_min in each."""
    owners = [str(name) for name in dataset[_owner(dataset)].values]
    layers = list(dict.fromkeys(owners))
    mass = dataset["v_min_mass"].transpose("lane", "parameter").values
    return layers, np.stack([mass[:, [o == layer for o in owners]].sum(1) for layer in layers], 1)


def _owner(dataset: xr.Dataset) -> str:
    return "parameter_layer" if "parameter_layer" in dataset.coords else "parameter"


def _classes(dataset: xr.Dataset) -> list[str]:
    """Return the classes from head to tail where they are lanes, as stored otherwise."""
    names = [str(name) for name in dataset["class_name"].values]
    ordered = [lane for lane in prep.class_lanes(dataset) if lane in names]
    return [*ordered, *(name for name in names if name not in ordered)]


def matrix_side(num_lanes: int) -> float:
    """Return the side in inches of a matrix over lanes."""
    return min(max(3.3, 0.24 * num_lanes + 1.0), 5.6)


def matrix_panel(
    title: str, rows: Sequence[str], columns: Sequence[str], z: Array, *, is_first: bool, x_label: str = ""
) -> Panel:
    """Return a panel of coloured cells with named rows and columns; the numbers in the cells where there is room."""
    texts: tuple[tuple[str, ...], ...] = ()
    hover: tuple[tuple[str, ...], ...] = ()
    if max(z.shape) <= MOST_NUMBERS:
        texts = tuple(tuple(number(value) for value in row) for row in z)
    if z.size <= MOST_HOVERED:
        hover = tuple(
            tuple(f"{a} × {b}: {prep.short(value)}" for b, value in zip(columns, row)) for a, row in zip(rows, z)
        )
    x = Axis(
        x_label, limits=(-0.5, len(columns) - 0.5), categories=prep.thinned(list(columns), MOST_COLUMNS), tilted=True
    )
    names = prep.thinned(list(rows), MOST_ROWS) if is_first else ("",) * len(rows)
    y = Axis("", limits=(len(rows) - 0.5, -0.5), categories=names)
    return Panel(title, x, y, (Heat(np.arange(len(columns)), np.arange(len(rows)), z, texts, hover),))


def number(value: float) -> str:
    """Return two digits, at most five characters; nothing for a hole."""
    if not np.isfinite(value):
        return ""
    if abs(value) >= 9.95:
        return f"{value:.0f}" if abs(value) < 1e4 else f"{value:.0e}".replace("e+0", "e")
    text = f"{value:.2f}" if abs(value) < 0.995 else f"{value:.1f}"
    return "0" if float(text) == 0 else text.replace("-", "−").replace("0.", ".")
