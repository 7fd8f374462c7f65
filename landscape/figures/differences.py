"""Figures of the difference of two surfaces, with what its intervals leave open."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from landscape.figures import preparation as prep
from landscape.figures import quantities as of
from landscape.figures.contours import which_pair
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import Array, Axis, Backend, Band, Heat, Line, Mark, Panel, Picture, Points, Text
from landscape.figures.style import INK, MUTED


def plot_difference(
    difference: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    pair: int | None = None,
    variable: str = "loss",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw where one checkpoint's surface lies above another's, and where the intervals do not say.

    Parameters
    ----------
    difference
        A Dataset with ``loss_difference`` (pair, beta, alpha, lane), a line without beta, and, where they are known, the
        ends of its interval ``loss_difference_low`` and ``loss_difference_high``; the attributes ``first`` and ``second``
        name the checkpoints, first minus second. Or ``{name: Dataset}``: a row each.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default the groups, or all where there are none.
    pair
        Which pair of directions; the first by default.
    variable
        What was subtracted: ``"loss"``, ``"error"``, ``"margin"``, ``"increase"``, ...
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Planes: measured cells, blue below and red above zero, on one scale; a stroke through every cell whose interval
        contains zero. Lines: the difference with its interval. Without intervals neither is drawn, and the note says so.
    """
    name = f"{variable}_difference"
    data = prep.as_mapping({"": difference} if isinstance(difference, xr.Dataset) else difference, name)
    chosen = prep.choose_lanes(data, lanes, prep.GROUP_LANES)
    is_plane = all("beta" in dataset[name].dims for dataset in data.values())
    draw = _planes if is_plane else _lines
    picture = draw(data, chosen, name, pair)
    first = next(iter(data.values()))
    title = f"{of.noun(variable)}: {_checkpoint(first, 'first')} minus {_checkpoint(first, 'second')}"
    if len(data) > 1:
        title = f"{of.noun(variable)}: differences of checkpoints"
    note = f"{which_pair(data, pair)} {picture.note}".strip()
    return render(replace(picture, title=title, note=note, card=prep.scale_card(data, lanes=chosen)), backend)


def _checkpoint(dataset: xr.Dataset, which: str) -> str:
    return str(dataset.attrs.get(which, f"the {which} checkpoint"))


def _label(dataset: xr.Dataset, name: str) -> str:
    meant = of.meaning(dataset, name.removesuffix("_difference"))
    meant = meant.split("\n")[0]
    return f"difference of the {meant}"


def _ends(dataset: xr.Dataset, name: str) -> tuple[str, str] | None:
    low, high = f"{name}_low", f"{name}_high"
    return (low, high) if low in dataset and high in dataset else None


def _of_pair(dataset: xr.Dataset, name: str, lane: str, pair: int | None) -> xr.DataArray:
    values = of.masked(dataset, name).sel(lane=lane)
    if "pair" not in values.dims:
        return values
    return values.isel(pair=0) if pair is None else values.sel(pair=pair)


def _level(data: dict[str, xr.Dataset]) -> str:
    levels = {float(d.attrs[key]) for d in data.values() for key in ("level", "interval_level") if key in d.attrs}
    return f"{100 * levels.pop():g} % interval" if len(levels) == 1 else "interval"


def _planes(data: dict[str, xr.Dataset], lanes: Sequence[str], name: str, pair: int | None) -> Picture:
    values = {
        (key, lane): _of_pair(dataset, name, lane, pair).transpose("beta", "alpha")
        for key, dataset in data.items()
        for lane in lanes
        if lane in prep.all_lanes([dataset])
    }
    first = next(iter(data.values()))
    scale = prep.diverging_scale([plane.values for plane in values.values()], _label(first, name))
    x = Axis(of.axis_label(first, "alpha"), limits=_edges([plane["alpha"].values for plane in values.values()]))
    y = Axis(of.axis_label(first, "beta"), limits=_edges([plane["beta"].values for plane in values.values()]))
    rows = []
    undecided, total = 0, 0
    for i, (key, dataset) in enumerate(data.items()):
        row: list[Panel | None] = []
        for j, lane in enumerate(lanes):
            if (key, lane) not in values:
                row.append(None)
                continue
            open_cells = _open_cells(dataset, name, lane, pair)
            undecided += 0 if open_cells is None else int(open_cells.sum())
            total += 0 if open_cells is None else open_cells.size
            heading = " · ".join(text for text in (key, prep.lane_label(dataset, lane)) if text)
            marks = _cell_marks(values[key, lane], open_cells)
            across = x if i == len(data) - 1 else replace(x, label="")
            row.append(Panel(heading, across, y if j == 0 else replace(y, label=""), marks))
        rows.append(tuple(row))
    where = "contains 0 (strokes)"
    note = f"{undecided} of {total} cells: the {_level(data)} {where}." if total else "No intervals were recorded."
    told = (
        [_checkpoint(first, which) for which in ("first", "second")] if len(data) == 1 else ["the first", "the second"]
    )
    note = f"Blue: {told[0]} is lower than {told[1]}; red: higher. {note} +: the weights; grey: not measured."
    return Picture("", tuple(rows), "", note, scale, (2.75, 2.5), linked=True)


def _open_cells(dataset: xr.Dataset, name: str, lane: str, pair: int | None) -> Array | None:
    """Return (beta, alpha) or (alpha,): where the interval contains zero; None where there are no intervals."""
    ends = _ends(dataset, name)
    if ends is None:
        return None
    low, high = (_of_pair(dataset, end, lane, pair).transpose(..., "alpha").values for end in ends)
    return np.asarray((low <= 0) & (high >= 0))


def _cell_marks(plane: xr.DataArray, open_cells: Array | None) -> tuple[Mark, ...]:
    alpha, beta = plane["alpha"].values, plane["beta"].values
    hover = tuple(
        tuple(f"({a:.3g}, {b:.3g}): {prep.short(v)}" for a, v in zip(alpha, row)) for b, row in zip(beta, plane.values)
    )
    marks: list[Mark] = [Heat(alpha, beta, plane.values, hover=hover if plane.size <= 2500 else ())]
    if open_cells is not None and open_cells.any():
        i, j = np.nonzero(open_cells)
        size = max(2.0, min(6.0, 110.0 / max(plane.shape)))
        marks.append(Points(alpha[j], beta[i], INK, "slash", "interval contains 0", size, 0.75))
    marks.append(Points(np.zeros(1), np.zeros(1), INK, "plus", "", 6.0))
    here = prep.centre_of(plane)
    if here is not None and np.isfinite(here):
        marks.append(Text(0.0, 0.0, prep.short(float(here)), INK, "left", (5.0, 5.0), 7.0))
    return tuple(marks)


def _edges(coordinates: Sequence[Array]) -> tuple[float, float]:
    """Return the range of cells around the coordinates, half a cell beyond the outermost."""
    low = min(float(c[0] - (c[1] - c[0]) / 2) if len(c) > 1 else float(c[0]) - 0.5 for c in coordinates)
    high = max(float(c[-1] + (c[-1] - c[-2]) / 2) if len(c) > 1 else float(c[-1]) + 0.5 for c in coordinates)
    return low, high


def _lines(data: dict[str, xr.Dataset], lanes: Sequence[str], name: str, pair: int | None) -> Picture:
    first = next(iter(data.values()))
    looks = prep.lane_looks(data, lanes)
    reach: list[Array] = [np.zeros(1)]
    drawn: list[tuple[str, list[Mark]]] = []
    has_ends = False
    for key, dataset in data.items():
        for lane in lanes:
            if lane not in prep.all_lanes([dataset]):
                continue
            curve = _of_pair(dataset, name, lane, pair)
            alpha, look = curve["alpha"].values, looks[lane]
            marks: list[Mark] = [Line(alpha, curve.values, look.colour, "", look.dash, width=1.4)]
            ends = _ends(dataset, name)
            reach.append(curve.values)
            if ends is not None:
                has_ends = True
                low, high = (_of_pair(dataset, end, lane, pair).values for end in ends)
                reach += [low, high]
                marks.insert(0, Band(alpha, low, high, look.colour))
                undecided = _open_cells(dataset, name, lane, pair)
                assert undecided is not None
                at = np.nonzero(undecided)[0]
                marks.append(Points(alpha[at], curve.values[at], INK, "slash", "interval contains 0", 5.0))
            heading = " · ".join(text for text in (key, prep.lane_label(dataset, lane)) if text)
            drawn.append((heading, marks))
    y = Axis(_label(first, name), limits=prep.padded(*prep.finite_range(reach)))
    x = Axis("", limits=prep.padded(*prep.finite_range([dataset["alpha"] for dataset in data.values()]), 0.02))
    assert x.limits is not None
    zero = Line(np.array(x.limits), np.zeros(2), MUTED, "", "solid", width=0.8)
    panels = [Panel(heading, x, y, (zero, *marks)) for heading, marks in drawn]
    rows, columns = prep.grid_shape(len(panels), widest=4)
    note = f"Area: {_level(data)}; strokes: it contains 0." if has_ends else "No intervals were recorded."
    placed = arrange(panels, rows, columns, of.axis_label(first, "alpha"))
    return Picture("", placed, "", note, panel_size=(2.75, 2.3), linked=True)
