"""One panel of a plotly figure: where its traces go, and how its axes are finished."""

from __future__ import annotations

import html
import math
from typing import Any

import numpy as np
import plotly.graph_objects as go

from landscape.figures import picture as pic
from landscape.figures.preparation import log_ticks, short
from landscape.figures.style import FEW_DECADES, GRID, MISSING, MUTED


class Place:
    """Where traces of one panel go: the figure, its row and column, its colours, and what the legend already has."""

    def __init__(
        self, figure: go.Figure, panel: pic.Panel, row: int, column: int, shown: set[str], picture: pic.Picture
    ) -> None:
        self.figure, self.panel, self.row, self.column = figure, panel, row, column
        self.shown, self.colours = shown, panel.colours or picture.colours
        number = picture.scales.index(self.colours) + 1 if self.colours is not None else 1
        self.colour_axis = "coloraxis" if number == 1 else f"coloraxis{number}"

    def add(self, trace: Any, label: str = "") -> None:
        """Add a trace to the panel; a label stands in the legend once."""
        if label:
            trace.update(name=safe(label), legendgroup=label, showlegend=label not in self.shown)
            self.shown.add(label)
        else:
            trace.update(showlegend=False)
        self.figure.add_trace(trace, row=self.row, col=self.column)


def finish_plane(place: Place, linked: bool, height: float) -> None:
    """Give a flat panel of ``height`` pixels its axes."""
    cells = any(isinstance(mark, pic.Cells) for mark in place.panel.marks)
    filled = cells or any(isinstance(mark, pic.Heat | pic.Contours) for mark in place.panel.marks)
    for name, setting in (("x", place.panel.x), ("y", place.panel.y)):
        update = place.figure.update_xaxes if name == "x" else place.figure.update_yaxes
        options: dict[str, Any] = {
            "title": {"text": safe(setting.label), "standoff": 6, "font": {"size": 12}}, "showgrid": not filled,
            "gridcolor": GRID,
            "zeroline": False, "linecolor": MUTED, "showline": not cells, "ticks": "" if cells else "outside",
            "ticklen": 3,
            "automargin": True, "tickfont": {"size": 11},
        }  # fmt: skip
        if setting.scale == "log":
            decades = math.log10(setting.limits[1] / setting.limits[0]) if setting.limits is not None else 1.0
            room = height / 26 if name == "y" else 5
            options.update(type="log", dtick=max(1, math.ceil(decades / room)), exponentformat="power")
            if setting.limits is not None and setting.limits[1] < FEW_DECADES * setting.limits[0]:
                options["tickvals"] = log_ticks(*setting.limits)
        if setting.limits is not None:
            options["range"] = [position(setting, limit) for limit in setting.limits]
        if setting.scale == "symlog" and setting.limits is not None:
            ticks = pic.symlog_ticks(*setting.limits, setting.linear_within)
            options.update(
                tickvals=pic.symlog(ticks, setting.linear_within).tolist(), ticktext=[short(t) for t in ticks]
            )
        if setting.categories:
            options.update(
                tickvals=list(range(len(setting.categories))), ticktext=[safe(text) for text in setting.categories]
            )
        if setting.tilted:
            options["tickangle"] = -45
        if setting.percent:
            options["tickformat"] = ".0%"
        if cells and name == "x":
            options["side"] = "top"
        if linked and (place.row, place.column) != (1, 1):
            options["matches"] = name
        update(**options, row=place.row, col=place.column)
    if any(isinstance(mark, pic.Contours | pic.Heat) for mark in place.panel.marks):
        _shade_missing(place)


def _shade_missing(place: Place) -> None:
    (x0, x1), (y0, y1) = place.panel.x.limits or (0, 1), place.panel.y.limits or (0, 1)
    corners = {"x0": position(place.panel.x, x0), "x1": position(place.panel.x, x1)}
    corners |= {"y0": position(place.panel.y, y0), "y1": position(place.panel.y, y1)}
    place.figure.add_shape(
        type="rect", **corners, fillcolor=MISSING, line_width=0, layer="below", row=place.row, col=place.column
    )


def finish_space(place: Place, z: pic.Axis) -> None:
    """Give a panel in space its axes and the camera."""
    settings = {}
    for name, setting in (("x", place.panel.x), ("y", place.panel.y), ("z", z)):
        options: dict[str, Any] = {
            "title": {"text": safe(setting.label), "font": {"size": 11}},
            "tickfont": {"size": 10},
        }
        if setting.limits is not None:
            scale = place.colours if name == "z" else None
            options["range"] = [level(limit, scale) for limit in setting.limits]
        if name == "z" and place.colours is not None and place.colours.ticks:
            options["tickvals"] = [level(tick, place.colours) for tick in place.colours.ticks]
            options["ticktext"] = [short(tick) for tick in place.colours.ticks]
        settings[f"{name}axis"] = options
    camera = {"eye": {"x": 1.15, "y": -1.4, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.12}}
    ratio = {"x": 1, "y": 1, "z": 0.75}
    place.figure.update_scenes(
        **settings, camera=camera, aspectmode="manual", aspectratio=ratio, row=place.row, col=place.column
    )


def position(setting: pic.Axis, value: float) -> float:
    """Return where plotly's layout expects a value: its logarithm on a log axis, its position on a symlog axis."""
    if setting.scale == "log":
        return math.log10(value)
    return float(pic.symlog(value, setting.linear_within)) if setting.scale == "symlog" else float(value)


def on_axis(setting: pic.Axis, values: Any) -> Any:
    """Return where values stand in a trace: on a symlog axis their position, else themselves."""
    return single(pic.symlog(values, setting.linear_within) if setting.scale == "symlog" else values)


def level(values: Any, scale: pic.ColourScale | None) -> Any:
    """Return colour or height coordinates."""
    return values if scale is None else scale.position(values)


def single(values: Any) -> Any:
    """Return values in single precision: half the size of the page."""
    return np.asarray(values, dtype=np.float32)


def safe(text: str) -> str:
    """Keep plotly from reading a class name as markup."""
    return html.escape(text, quote=False).replace("\n", "<br>")
