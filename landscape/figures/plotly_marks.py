"""Draw a picture with plotly, for the report: the same numbers as the matplotlib drawing, in single precision."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Callable
from typing import Any

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from landscape.figures import picture as pic
from landscape.figures.preparation import log_ticks, short
from landscape.figures.style import FEW_DECADES, GRID, INK, MISSING, MUTED, PAPER, with_alpha

_MARKERS = {
    "circle": "circle", "square": "square", "triangle": "triangle-up", "diamond": "diamond", "cross": "cross", "x": "x",
    "star": "star", "triangle-down": "triangle-down", "plus": "cross-thin", "hole": "x-thin", "bar": "line-ew",
}  # fmt: skip
_HATCHES = {"": "", "///": "/", "...": ".", "xxx": "x", "\\\\\\": "\\", "---": "-", "+++": "+", "ooo": "."}
_FONT = "system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif"
_PIXELS = 96  # per inch of panel height


class _Place:
    """Where traces of one panel go: the figure, its row and column, and which labels the legend already has."""

    def __init__(
        self, figure: go.Figure, panel: pic.Panel, row: int, column: int, shown: set[str], colours: Any
    ) -> None:
        self.figure, self.panel, self.row, self.column = figure, panel, row, column
        self.shown, self.colours = shown, colours

    def add(self, trace: Any, label: str = "") -> None:
        if label:
            trace.update(name=_safe(label), legendgroup=label, showlegend=label not in self.shown)
            self.shown.add(label)
        else:
            trace.update(showlegend=False)
        self.figure.add_trace(trace, row=self.row, col=self.column)


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
    figure = make_subplots(
        num_rows, num_columns, specs=kinds,
        subplot_titles=[_safe(p.title) for row in padded for p in row if p is not None],
        horizontal_spacing=min(0.01 if in_space else 0.065, 0.5 / num_columns), vertical_spacing=gap / plot_height,
    )  # fmt: skip
    figure.update_annotations(font={"size": 13, "color": INK})
    shown: set[str] = set()
    for i, row in enumerate(padded):
        for j, panel in enumerate(row):
            if panel is None:
                continue
            place = _Place(figure, panel, i + 1, j + 1, shown, picture.colours)
            for mark in panel.marks:
                _MARKS[type(mark)](place, mark)
            if panel.z is not None:
                _finish_space(place, panel.z)
            else:
                _finish_plane(place, picture.linked, panel_height)
    _finish_figure(figure, picture, plot_height, shown)
    return figure


def _finish_figure(figure: go.Figure, picture: pic.Picture, plot_height: float, shown: set[str]) -> None:
    legend_rows = math.ceil(sum(len(label) * 7 + 60 for label in shown) / 1000) if shown else 0
    lines = [_safe(line) for text in (picture.note, picture.card) if text for line in textwrap.wrap(text, 170)]
    top = 44 + 24 * legend_rows + 26
    tilted = any(panel.x.tilted for panel in picture.panels)
    axis_room = 100 if tilted else 56
    bottom = axis_room + 15 * len(lines) + 6
    figure.update_layout(
        title={"text": f"<b>{_safe(picture.title)}</b>", "x": 0.0, "xref": "paper", "y": 1.0, "yref": "container",
               "yanchor": "top", "pad": {"t": 12}, "font": {"size": 16, "color": INK}},
        height=round(plot_height + top + bottom), margin={"l": 70, "r": 30, "t": top, "b": bottom},
        legend={"orientation": "h", "x": 0, "xanchor": "left", "y": 1 + 30 / plot_height, "yanchor": "bottom",
                "font": {"size": 12}},
        font={"family": _FONT, "size": 12, "color": INK}, paper_bgcolor=PAPER, plot_bgcolor=PAPER,
        hoverlabel={"font": {"size": 12}}, barmode="overlay",
    )  # fmt: skip
    if lines:
        figure.add_annotation(
            text="<br>".join(lines), x=0, xref="paper", xanchor="left", y=0, yref="paper", yanchor="top",
            yshift=-axis_room,
            showarrow=False, align="left", font={"size": 11, "color": MUTED},
        )  # fmt: skip
    if picture.colours is not None:
        scale = picture.colours
        bar: dict[str, Any] = {"thickness": 14, "len": 0.95}
        bar["title"] = {"text": _safe(scale.label), "side": "right", "font": {"size": 12}}
        if scale.ticks:
            bar.update(tickvals=[_level(t, scale) for t in scale.ticks], ticktext=[short(t) for t in scale.ticks])
        ends = {"cmin": _level(scale.low, scale), "cmax": _level(scale.high, scale)}
        figure.update_layout(coloraxis={"colorscale": scale.colour_map, "colorbar": bar, **ends})


def _line(place: _Place, mark: pic.Line) -> None:
    hover: dict[str, Any] = {"hovertemplate": "%{x:.4g}, %{y:.4g}"}
    if place.panel.x.scale == "symlog":
        hover = {"hovertemplate": "%{customdata:.4g}, %{y:.4g}", "customdata": _single(mark.x)}
    place.add(
        go.Scatter(
            x=_x(place, mark.x), y=_y(place, mark.y), mode="lines+markers" if mark.marker else "lines",
            opacity=mark.alpha,
            line={"color": mark.colour, "dash": mark.dash, "width": mark.width * 1.2}, connectgaps=False,
            marker={"symbol": _MARKERS.get(mark.marker, "circle"), "size": 6, "color": mark.colour},
            **hover,
        ),
        mark.label,
    )  # fmt: skip


def _band(place: _Place, mark: pic.Band) -> None:
    kept = np.isfinite(mark.low) & np.isfinite(mark.high)
    x, low, high = (np.asarray(a)[kept] for a in (mark.x, mark.low, mark.high))
    place.add(
        go.Scatter(
            x=_x(place, np.concatenate([x, x[::-1]])), y=_y(place, np.concatenate([high, low[::-1]])), mode="none",
            fill="toself",
            fillcolor=with_alpha(mark.colour, mark.alpha), hoverinfo="skip",
        ),
        mark.label,
    )  # fmt: skip


def _points(place: _Place, mark: pic.Points) -> None:
    thin = mark.marker in ("plus", "hole", "bar")
    symbol = _MARKERS[mark.marker] + ("-open" if mark.hollow and not thin else "")
    hover = {"text": [_safe(text) for text in mark.hover], "hovertemplate": "%{text}"} if mark.hover else {}
    error = _error_bars(place, mark.y, mark.error, mark.colour)
    place.add(
        go.Scatter(
            x=_x(place, mark.x), y=_y(place, mark.y), mode="markers", opacity=mark.alpha, error_y=error,
            marker={"symbol": symbol, "size": mark.size * 1.5, "color": mark.colour,
                    "line": {"width": 1.6 if thin or mark.hollow else 0.5, "color": mark.colour}},
            **hover,
        ),
        mark.label,
    )  # fmt: skip


def _stems(place: _Place, mark: pic.Stems) -> None:
    height = np.maximum(mark.height, mark.base)
    down = {"type": "data", "symmetric": False, "arrayminus": _single(_y(place, height) - _y(place, [mark.base]))}
    down |= {"array": [], "thickness": 1, "width": 0, "color": with_alpha(mark.colour, mark.alpha)}
    place.add(
        go.Scatter(
            x=_x(place, mark.x), y=_y(place, height), mode="markers", error_y=down, hoverinfo="skip",
            marker={"size": 1, "color": mark.colour, "opacity": 0},
        ),
        mark.label,
    )  # fmt: skip


def _error_bars(place: _Place, y: Any, error: Any, colour: str) -> dict[str, Any] | None:
    """Return error bars in drawn coordinates: on a symlog axis the two arms differ."""
    if error is None:
        return None
    below, above = error if np.ndim(error) == 2 else (error, error)
    up, down = _y(place, y + above) - _y(place, y), _y(place, y) - _y(place, y - below)
    look = {"thickness": 1.3, "width": 3, "color": colour}
    return {"type": "data", "symmetric": False, "array": _single(up), "arrayminus": _single(down), **look}


def _bars(place: _Place, mark: pic.Bars) -> None:
    shape = _HATCHES.get(mark.hatch, "")
    pattern = {"shape": shape, "fgcolor": PAPER, "bgcolor": mark.colour, "size": 6, "solidity": 0.2}
    error = _error_bars(place, mark.height, mark.error, INK)
    place.add(
        go.Bar(
            x=_x(place, mark.x), y=_y(place, mark.height), width=mark.width, error_y=error,
            text=[_safe(t) for t in mark.texts] or None,
            textposition="outside" if mark.texts else None, textfont={"size": 10}, cliponaxis=False,
            marker={"color": mark.colour, "pattern": pattern},
            hovertemplate="%{y:.4g}",
        ),
        mark.label,
    )  # fmt: skip


def _text(place: _Place, mark: pic.Text) -> None:
    x, y = (_position(axis, value) for axis, value in ((place.panel.x, mark.x), (place.panel.y, mark.y)))
    place.figure.add_annotation(
        text=_safe(mark.text), x=x, y=y, row=place.row, col=place.column, showarrow=False, xanchor=mark.align,
        bgcolor="rgba(0,0,0,0.35)" if mark.colour == PAPER else None, xshift=mark.shift[0] * 1.3,
        yshift=mark.shift[1] * 1.3, font={"size": mark.size * 1.5, "color": mark.colour},
    )  # fmt: skip


def _heat(place: _Place, mark: pic.Heat) -> None:
    z = _single(_level(mark.z, place.colours))
    texts, hover = ([[_safe(t) for t in row] for row in rows] for rows in (mark.texts, mark.hover))
    said: dict[str, Any] = {"text": texts, "texttemplate": "%{text}"} if texts else {}
    said |= {"hovertext": hover, "hovertemplate": "%{hovertext}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    at = {"x": _x(place, mark.x), "y": _y(place, mark.y)}
    place.add(go.Heatmap(**at, z=z, coloraxis="coloraxis", hoverongaps=False, **said))


def _contours(place: _Place, mark: pic.Contours) -> None:
    scale = place.colours
    low, high = _level(scale.levels[0], scale), _level(scale.levels[-1], scale)
    place.add(
        go.Contour(
            x=_single(mark.x), y=_single(mark.y), z=_single(_level(mark.z, scale)), coloraxis="coloraxis",
            connectgaps=False,
            contours={"start": low, "end": high, "size": (high - low) / (len(scale.levels) - 1)},
            line={"width": 0.6, "color": PAPER}, **_values(mark.z, scale),
        )
    )  # fmt: skip
    _cover_holes(place, mark)


def _cover_holes(place: _Place, mark: pic.Contours) -> None:
    """Cover every cell with a missing corner: plotly's contours would reach into it."""
    corners: list[tuple[float, float]] = []
    gap = (math.nan, math.nan)
    for i, j in np.argwhere(~np.isfinite(mark.z)):
        left, right = (float(mark.x[min(max(j + step, 0), len(mark.x) - 1)]) for step in (-1, 1))
        low, high = (float(mark.y[min(max(i + step, 0), len(mark.y) - 1)]) for step in (-1, 1))
        corners += [(left, low), (right, low), (right, high), (left, high), (left, low), gap]
    if corners:
        x, y = np.array(corners).T
        cover = {"mode": "none", "fill": "toself", "fillcolor": MISSING, "hoverinfo": "skip"}
        place.add(go.Scatter(x=_single(x), y=_single(y), **cover))


def _relief(place: _Place, mark: pic.Relief) -> None:
    z = _single(_level(mark.z, place.colours))
    place.add(
        go.Surface(
            x=_single(mark.x),
            y=_single(mark.y),
            z=z,
            coloraxis="coloraxis",
            connectgaps=False,
            **_values(mark.z, place.colours),
        )
    )


def _cells(place: _Place, mark: pic.Cells) -> None:
    fills = list(dict.fromkeys(fill for row in mark.fills for fill in row))
    z = np.array([[fills.index(fill) for fill in row] for row in mark.fills], dtype=np.float32)
    count = len(fills)
    scale = [(edge / count, fill) for k, fill in enumerate(fills) for edge in (k, k + 1)]
    place.add(
        go.Heatmap(
            z=z, colorscale=scale, zmin=-0.5, zmax=count - 0.5, showscale=False, xgap=3, ygap=3, hoverinfo="skip"
        )
    )
    for i, row in enumerate(mark.texts):
        for j, text in enumerate(row):
            place.figure.add_annotation(
                text=_safe(text), x=j, y=i, row=place.row, col=place.column, showarrow=False,
                font={"size": 11, "color": mark.inks[i][j]},
            )  # fmt: skip


_MARKS: dict[type, Callable[..., None]] = {
    pic.Line: _line, pic.Band: _band, pic.Points: _points, pic.Stems: _stems, pic.Bars: _bars, pic.Text: _text,
    pic.Heat: _heat, pic.Contours: _contours, pic.Relief: _relief, pic.Cells: _cells,
}  # fmt: skip


def _finish_plane(place: _Place, linked: bool, height: float) -> None:
    cells = any(isinstance(mark, pic.Cells) for mark in place.panel.marks)
    filled = cells or any(isinstance(mark, pic.Heat | pic.Contours) for mark in place.panel.marks)
    for name, setting in (("x", place.panel.x), ("y", place.panel.y)):
        update = place.figure.update_xaxes if name == "x" else place.figure.update_yaxes
        options: dict[str, Any] = {
            "title": {"text": _safe(setting.label), "standoff": 6, "font": {"size": 12}}, "showgrid": not filled,
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
            options["range"] = [_position(setting, limit) for limit in setting.limits]
        if setting.scale == "symlog" and setting.limits is not None:
            ticks = pic.symlog_ticks(*setting.limits, setting.linear_within)
            options.update(
                tickvals=pic.symlog(ticks, setting.linear_within).tolist(), ticktext=[short(t) for t in ticks]
            )
        if setting.categories:
            options.update(
                tickvals=list(range(len(setting.categories))), ticktext=[_safe(text) for text in setting.categories]
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


def _shade_missing(place: _Place) -> None:
    (x0, x1), (y0, y1) = place.panel.x.limits or (0, 1), place.panel.y.limits or (0, 1)
    corners = {"x0": _position(place.panel.x, x0), "x1": _position(place.panel.x, x1)}
    corners |= {"y0": _position(place.panel.y, y0), "y1": _position(place.panel.y, y1)}
    place.figure.add_shape(
        type="rect", **corners, fillcolor=MISSING, line_width=0, layer="below", row=place.row, col=place.column
    )


def _finish_space(place: _Place, z: pic.Axis) -> None:
    settings = {}
    for name, setting in (("x", place.panel.x), ("y", place.panel.y), ("z", z)):
        options: dict[str, Any] = {
            "title": {"text": _safe(setting.label), "font": {"size": 11}},
            "tickfont": {"size": 10},
        }
        if setting.limits is not None:
            scale = place.colours if name == "z" else None
            options["range"] = [_level(limit, scale) for limit in setting.limits]
        if name == "z" and place.colours is not None and place.colours.ticks:
            options["tickvals"] = [_level(tick, place.colours) for tick in place.colours.ticks]
            options["ticktext"] = [short(tick) for tick in place.colours.ticks]
        settings[f"{name}axis"] = options
    camera = {"eye": {"x": 1.15, "y": -1.4, "z": 0.85}, "center": {"x": 0, "y": 0, "z": -0.12}}
    ratio = {"x": 1, "y": 1, "z": 0.75}
    place.figure.update_scenes(
        **settings, camera=camera, aspectmode="manual", aspectratio=ratio, row=place.row, col=place.column
    )


def _position(setting: pic.Axis, value: float) -> float:
    """Return where plotly's layout expects a value: its logarithm on a log axis, its position on a symlog axis."""
    if setting.scale == "log":
        return math.log10(value)
    return float(pic.symlog(value, setting.linear_within)) if setting.scale == "symlog" else float(value)


def _x(place: _Place, values: Any) -> Any:
    return _on_axis(place.panel.x, values)


def _y(place: _Place, values: Any) -> Any:
    return _on_axis(place.panel.y, values)


def _on_axis(setting: pic.Axis, values: Any) -> Any:
    return _single(pic.symlog(values, setting.linear_within) if setting.scale == "symlog" else values)


def _level(values: Any, scale: pic.ColourScale | None) -> Any:
    """Return colour or height coordinates."""
    return values if scale is None else scale.position(values)


def _values(z: Any, scale: pic.ColourScale) -> dict[str, Any]:
    """Return hover settings that show data units whatever the scale."""
    if not scale.log:
        return {"hovertemplate": "(%{x:.3g}, %{y:.3g}): %{z:.4g}<extra></extra>"}
    return {"customdata": _single(z), "hovertemplate": "(%{x:.3g}, %{y:.3g}): %{customdata:.4g}<extra></extra>"}


def _single(values: Any) -> Any:
    return np.asarray(values, dtype=np.float32)


def _gap(rows: list[list[pic.Panel | None]]) -> float:
    """Return pixels between rows of panels: room for the tick labels and axis labels there and the next title."""
    upper = [panel for row in rows[:-1] for panel in row if panel is not None]
    named = any(panel.x.categories and any(panel.x.categories) for panel in upper)
    ticks = any(not panel.x.categories for panel in upper)
    labels = any(panel.x.label for panel in upper)
    tilted = any(panel.x.tilted for panel in upper)
    return 34.0 + 22.0 * (named or ticks) + 24.0 * labels + 70.0 * tilted


def _safe(text: str) -> str:
    """Keep plotly from reading a class name as markup."""
    return html.escape(text, quote=False).replace("\n", "<br>")
