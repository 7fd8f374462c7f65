"""One panel of a plotly figure: where its traces go, and how its axes are finished."""

from __future__ import annotations

import html
import math
import re
import textwrap
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from landscape.figures import picture as pic
from landscape.figures.preparation import log_ticks, short
from landscape.figures.style import FEW_DECADES, GRID, MISSING, MUTED


@dataclass
class Canvas:
    """A figure as plain traces and layout: plotly checks all of it once at the end, which takes a third of the time."""

    layout: dict[str, Any]
    traces: list[dict[str, Any]] = field(default_factory=list)
    labels: set[str] = field(default_factory=set)


class Place:
    """Where traces of one panel go: the canvas, the names of the panel's axes, its colours."""

    def __init__(self, canvas: Canvas, panel: pic.Panel, axes: tuple[str, ...], picture: pic.Picture) -> None:
        self.panel, self._canvas, self._axes = panel, canvas, axes
        self.colours = panel.colours or picture.colours
        number = picture.scales.index(self.colours) + 1 if self.colours is not None else 1
        self.colour_axis = "coloraxis" if number == 1 else f"coloraxis{number}"
        # xaxis2 is x2 where a trace refers to it, scene2 stays scene2.
        self._names = {re.sub(r"\d", "", axis): axis.replace("axis", "") for axis in axes}

    @property
    def is_first(self) -> bool:
        """Whether these are the figure's first axes."""
        return self._axes[0] == "xaxis"

    def add(self, trace: dict[str, Any], label: str = "") -> None:
        """Add a trace to the panel; a label stands in the legend once."""
        if label:
            trace |= {"name": safe(label), "legendgroup": label, "showlegend": label not in self._canvas.labels}
            self._canvas.labels.add(label)
        else:
            trace["showlegend"] = False
        self._canvas.traces.append(trace | self._names)

    def annotate(self, **options: Any) -> None:
        """Add a text in the panel's coordinates."""
        self._canvas.layout.setdefault("annotations", []).append({**options, **self._references()})

    def shape(self, **options: Any) -> None:
        """Add a shape in the panel's coordinates."""
        self._canvas.layout.setdefault("shapes", []).append({**options, **self._references()})

    def settle(self, axis: str, **options: Any) -> None:
        """Set options of the panel's ``xaxis``, ``yaxis`` or ``scene``."""
        name = next(own for own in self._axes if own.startswith(axis))
        self._canvas.layout[name] |= options

    def _references(self) -> dict[str, str]:
        return {"xref": self._names["xaxis"], "yref": self._names["yaxis"]}


def finish_plane(place: Place, linked: bool, height: float) -> None:
    """Give a flat panel of ``height`` pixels its axes."""
    cells = any(isinstance(mark, pic.Cells) for mark in place.panel.marks)
    filled = cells or any(isinstance(mark, pic.Heat | pic.Contours) for mark in place.panel.marks)
    for name, setting in (("x", place.panel.x), ("y", place.panel.y)):
        label = _wrapped(setting.label, height) if name == "y" else setting.label
        options: dict[str, Any] = {
            "title": {"text": safe(label), "standoff": 6, "font": {"size": 12}}, "showgrid": not filled,
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
        if linked and not place.is_first:
            options["matches"] = name
        place.settle(f"{name}axis", **options)
    if any(isinstance(mark, pic.Contours | pic.Heat) for mark in place.panel.marks):
        _shade_missing(place)


def _wrapped(label: str, height: float) -> str:
    """Break a vertical label that is longer than its panel, about 6.5 pixels a letter: it would run into the next one."""
    width = max(16, int(height / 6.5))
    return "\n".join(part for line in label.split("\n") for part in textwrap.wrap(line, width) or [""])


def _shade_missing(place: Place) -> None:
    (x0, x1), (y0, y1) = place.panel.x.limits or (0, 1), place.panel.y.limits or (0, 1)
    corners = {"x0": position(place.panel.x, x0), "x1": position(place.panel.x, x1)}
    corners |= {"y0": position(place.panel.y, y0), "y1": position(place.panel.y, y1)}
    place.shape(type="rect", **corners, fillcolor=MISSING, line={"width": 0}, layer="below")


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
    place.settle("scene", **settings, camera=camera, aspectmode="manual", aspectratio=ratio)


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
