"""Draw a picture with plotly, for the report: the same numbers as the matplotlib drawing, in single precision."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.figures import picture as pic
from landscape.figures.plotly_axes import Canvas, Place, finish_plane, finish_space, level, safe
from landscape.figures.plotly_marks import MARKS
from landscape.figures.preparation import short
from landscape.figures.style import INK, MUTED, PAPER

_FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"
_PIXELS = 96  # per inch of panel height


def draw(picture: pic.Picture) -> go.Figure:
    """Return the picture as a plotly figure."""
    num_rows, num_columns = len(picture.rows), max(len(row) for row in picture.rows)
    padded = [[*row, *([None] * (num_columns - len(row)))] for row in picture.rows]
    kinds = [[None if p is None else {"type": "scene" if p.z is not None else "xy"} for p in row] for row in padded]
    gap = _gap(padded)
    in_space = any(panel.z is not None for panel in picture.panels)
    stretch = {pic.Relief: 1.2, pic.Contours: 1.0}
    share = max(stretch.get(type(mark), 0.8) for panel in picture.panels for mark in panel.marks)
    panel_height = picture.panel_size[1] * _PIXELS * share
    plot_height = panel_height * num_rows + gap * (num_rows - 1)
    apart = len(picture.scales) > 1 or (picture.colours is None and bool(picture.scales))  # a bar beside its own panels
    spacing = 0.17 if apart else 0.01 if in_space else 0.065
    grid = make_subplots(
        num_rows, num_columns, specs=kinds,
        subplot_titles=[safe(p.title) for row in padded for p in row if p is not None],
        horizontal_spacing=min(spacing, 0.5 / num_columns), vertical_spacing=gap / plot_height,
    )  # fmt: skip
    layout = grid.to_dict()["layout"]
    layout.pop("template", None)
    for title in layout.setdefault("annotations", []):
        title["font"] = {"size": 13, "color": INK}
    canvas = Canvas(layout)
    for i, row in enumerate(padded):
        for j, panel in enumerate(row):
            if panel is None:
                continue
            place = Place(canvas, panel, _axes_of(grid, i + 1, j + 1), picture)
            for mark in panel.marks:
                MARKS[type(mark)](place, mark)
            if panel.z is not None:
                finish_space(place, panel.z)
            else:
                finish_plane(place, picture.linked, panel_height)
    _finish_figure(canvas, picture, plot_height)
    for number in range(1, len(picture.scales) + 1):
        _colour_bar(canvas, grid, picture, number, plot_height)
    return go.Figure({"data": canvas.traces, "layout": canvas.layout})


def _axes_of(grid: go.Figure, row: int, column: int) -> tuple[str, ...]:
    """Return the names of a panel's axes in the layout: ``xaxis2`` and ``yaxis2``, or ``scene2``."""
    box = grid.get_subplot(row, column)
    return (box.plotly_name,) if hasattr(box, "plotly_name") else (box.xaxis.plotly_name, box.yaxis.plotly_name)


def _finish_figure(canvas: Canvas, picture: pic.Picture, plot_height: float) -> None:
    shown = canvas.labels
    legend_rows = math.ceil(sum(len(label) * 7 + 60 for label in shown) / 1000) if shown else 0
    lines = [safe(line) for text in (picture.note, picture.card) if text for line in textwrap.wrap(text, 170)]
    top = 44 + 24 * legend_rows + 26
    tilted = any(panel.x.tilted for panel in picture.panels)
    axis_room = 100 if tilted else 56
    bottom = axis_room + 15 * len(lines) + 6
    canvas.layout |= {
        "title": {"text": f"<b>{safe(picture.title)}</b>", "x": 0.0, "xref": "paper", "y": 1.0, "yref": "container",
               "yanchor": "top", "pad": {"t": 12}, "font": {"size": 16, "color": INK}},
        "height": round(plot_height + top + bottom), "margin": {"l": 70, "r": 30, "t": top, "b": bottom},
        "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1 + 30 / plot_height, "yanchor": "bottom",
                "font": {"size": 12}},
        "font": {"family": _FONT, "size": 12, "color": INK}, "paper_bgcolor": PAPER, "plot_bgcolor": PAPER,
        "hoverlabel": {"font": {"size": 12}}, "barmode": "overlay",
    }  # fmt: skip
    if lines:
        note = {
            "text": "<br>".join(lines), "x": 0, "xref": "paper", "xanchor": "left", "y": 0, "yref": "paper", "yanchor": "top",
            "yshift": -axis_room,
            "showarrow": False, "align": "left", "font": {"size": 11, "color": MUTED},
        }  # fmt: skip
        canvas.layout["annotations"].append(note)


def _colour_bar(canvas: Canvas, grid: go.Figure, picture: pic.Picture, number: int, plot_height: float) -> None:
    """Draw the bar of a scale: at the right of the figure, or of its column where other panels have other scales."""
    scale = picture.scales[number - 1]
    bar: dict[str, Any] = {"thickness": 14, "len": 0.95}
    if scale.ticks:
        bar.update(tickvals=[level(t, scale) for t in scale.ticks], ticktext=[short(t) for t in scale.ticks])
    users = [
        (i + 1, j + 1)
        for i, row in enumerate(picture.rows)
        for j, panel in enumerate(row)
        if panel is not None and (panel.colours or picture.colours) == scale
    ]
    if len(users) < len(picture.panels):
        boxes = [grid.get_subplot(*place) for place in users]
        bottom = min(box.yaxis.domain[0] for box in boxes)
        top = max(box.yaxis.domain[1] for box in boxes)
        right = max(box.xaxis.domain[1] for box in boxes)
        bar.update(x=right + 0.005, xanchor="left", y=(bottom + top) / 2, len=(top - bottom), thickness=11)
    most = max(12, int(plot_height * bar["len"] / 6.2))
    label = "\n".join(part for line in scale.label.split("\n") for part in textwrap.wrap(line, most))
    bar["title"] = {"text": safe(label), "side": "right", "font": {"size": 12}}
    ends = {"cmin": level(scale.low, scale), "cmax": level(scale.high, scale)}
    name = "coloraxis" if number == 1 else f"coloraxis{number}"
    canvas.layout[name] = {"colorscale": scale.colour_map, "colorbar": bar, **ends}


def _gap(rows: list[list[pic.Panel | None]]) -> float:
    """Return pixels between rows of panels: room for the tick labels and axis labels there and the next title."""
    upper = [panel for row in rows[:-1] for panel in row if panel is not None]
    named = any(panel.x.categories and any(panel.x.categories) for panel in upper)
    ticks = any(not panel.x.categories for panel in upper)
    labels = any(panel.x.label for panel in upper)
    tilted = any(panel.x.tilted for panel in upper)
    return 34.0 + 22.0 * (named or ticks) + 24.0 * labels + 70.0 * tilted
