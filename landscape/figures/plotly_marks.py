"""The marks of a picture as plotly traces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from landscape.figures import picture as pic
from landscape.figures.plotly_axes import Place, level, on_axis, position, safe, single
from landscape.figures.style import INK, MISSING, PAPER, with_alpha

_MARKERS = {
    "circle": "circle", "square": "square", "triangle": "triangle-up", "diamond": "diamond", "cross": "cross", "x": "x",
    "star": "star", "triangle-down": "triangle-down", "plus": "cross-thin", "hole": "x-thin", "bar": "line-ew",
    "dot": "circle", "slash": "line-ne",
}  # fmt: skip
_HATCHES = {"": "", "///": "/", "...": ".", "xxx": "x", "\\\\\\": "\\", "---": "-", "+++": "+", "ooo": "."}


def _line(place: Place, mark: pic.Line) -> None:
    hover: dict[str, Any] = {"hovertemplate": "%{x:.4g}, %{y:.4g}"}
    if place.panel.x.scale == "symlog":
        hover = {"hovertemplate": "%{customdata:.4g}, %{y:.4g}", "customdata": single(mark.x)}
    sizes: Any = 6
    if mark.marker and mark.every > 1:  # plotly leaves out no markers: those between have no size
        sizes = np.zeros(len(mark.x))
        sizes[:: mark.every] = 6
    place.add(
        dict(
            type="scatter", x=_x(place, mark.x), y=_y(place, mark.y), mode="lines+markers" if mark.marker else "lines",
            opacity=mark.alpha,
            line={"color": mark.colour, "dash": mark.dash, "width": mark.width * 1.2}, connectgaps=False,
            marker={"symbol": _MARKERS.get(mark.marker, "circle"), "size": sizes, "color": mark.colour},
            **hover,
        ),
        mark.label,
    )  # fmt: skip


def _band(place: Place, mark: pic.Band) -> None:
    kept = np.isfinite(mark.low) & np.isfinite(mark.high)
    if not kept.any():
        kept[:] = True  # an entry of the legend alone: without a point plotly would leave it out
    x, low, high = (np.asarray(a)[kept] for a in (mark.x, mark.low, mark.high))
    around = {"x": _x(place, np.concatenate([x, x[::-1]])), "y": _y(place, np.concatenate([high, low[::-1]]))}
    look: dict[str, Any] = {"mode": "none", "fill": "toself", "fillcolor": with_alpha(mark.colour, mark.alpha)}
    if mark.style == "outline":
        look = {"mode": "lines", "line": {"color": mark.colour, "width": 0.9, "dash": "3px,1px"}}
    elif mark.style == "hatch":
        pattern = {"shape": "/", "fgcolor": mark.colour, "bgcolor": "rgba(0,0,0,0)", "size": 6, "solidity": 0.15}
        look = {"mode": "none", "fill": "toself", "fillpattern": pattern}
    place.add(dict(type="scatter", **around, **look, hoverinfo="skip"), mark.label)


def _points(place: Place, mark: pic.Points) -> None:
    thin = mark.marker in ("plus", "hole", "bar", "slash")
    symbol = _MARKERS[mark.marker] + ("-open" if mark.hollow and not thin else "")
    hover = {"text": [safe(text) for text in mark.hover], "hovertemplate": "%{text}"} if mark.hover else {}
    error = _error_bars(place.panel.y, mark.y, mark.error, mark.colour)
    place.add(
        dict(
            type="scatter", x=_x(place, mark.x), y=_y(place, mark.y), mode="markers", opacity=mark.alpha, error_y=error,
            marker={"symbol": symbol, "size": mark.size * 1.5, "color": mark.colour,
                    "line": {"width": 1.6 if thin or mark.hollow else 0.5, "color": mark.colour}},
            **hover,
        ),
        mark.label,
    )  # fmt: skip


def _stems(place: Place, mark: pic.Stems) -> None:
    height = np.maximum(mark.height, mark.base)
    down = {"type": "data", "symmetric": False, "arrayminus": single(_y(place, height) - _y(place, [mark.base]))}
    down |= {"array": [], "thickness": 1, "width": 0, "color": with_alpha(mark.colour, mark.alpha)}
    place.add(
        {
            "type": "scatter", "x": _x(place, mark.x), "y": _y(place, height), "mode": "markers", "error_y": down,
            "hoverinfo": "skip", "marker": {"size": 1, "color": mark.colour, "opacity": 0},
        },
        mark.label,
    )  # fmt: skip


def _error_bars(axis: pic.Axis, values: Any, error: Any, colour: str) -> dict[str, Any] | None:
    """Return error bars in drawn coordinates: on a symlog axis the two arms differ."""
    if error is None:
        return None
    below, above = error if np.ndim(error) == 2 else (error, error)
    here = on_axis(axis, values)
    up, down = on_axis(axis, values + above) - here, here - on_axis(axis, values - below)
    look = {"thickness": 1.3, "width": 3, "color": colour}
    return {"type": "data", "symmetric": False, "array": single(up), "arrayminus": single(down), **look}


def _bars(place: Place, mark: pic.Bars) -> None:
    shape = _HATCHES.get(mark.hatch, "")
    pattern = {"shape": shape, "fgcolor": PAPER, "bgcolor": mark.colour, "size": 6, "solidity": 0.2}
    if mark.horizontal:
        bars = {"x": _x(place, mark.height), "y": _y(place, mark.x), "orientation": "h", "hovertemplate": "%{x:.4g}"}
        bars["error_x"] = _error_bars(place.panel.x, mark.height, mark.error, INK)
    else:
        error = _error_bars(place.panel.y, mark.height, mark.error, INK)
        bars = {"x": _x(place, mark.x), "y": _y(place, mark.height), "error_y": error, "hovertemplate": "%{y:.4g}"}
    place.add(
        dict(
            type="bar", **bars, width=mark.width,
            text=[safe(t) for t in mark.texts] or None,
            textposition="outside" if mark.texts else None, textfont={"size": 10}, cliponaxis=False,
            marker={"color": mark.colour, "pattern": pattern},
        ),
        mark.label,
    )  # fmt: skip


def _text(place: Place, mark: pic.Text) -> None:
    x, y = (position(axis, value) for axis, value in ((place.panel.x, mark.x), (place.panel.y, mark.y)))
    place.annotate(
        text=safe(mark.text), x=x, y=y, showarrow=False, xanchor=mark.align,
        bgcolor="rgba(0,0,0,0.35)" if mark.colour == PAPER else None, xshift=mark.shift[0] * 1.3,
        yshift=mark.shift[1] * 1.3, font={"size": mark.size * 1.5, "color": mark.colour},
    )  # fmt: skip


def _heat(place: Place, mark: pic.Heat) -> None:
    z = single(level(mark.z, place.colours))
    texts, hover = ([[safe(t) for t in row] for row in rows] for rows in (mark.texts, mark.hover))
    said: dict[str, Any] = {"text": texts, "texttemplate": "%{text}"} if texts else {}
    said |= {"hovertext": hover, "hovertemplate": "%{hovertext}<extra></extra>"} if hover else {"hoverinfo": "skip"}
    at = {"x": _x(place, mark.x), "y": _y(place, mark.y)}
    place.add(dict(type="heatmap", **at, z=z, coloraxis=place.colour_axis, hoverongaps=False, **said))


def _contours(place: Place, mark: pic.Contours) -> None:
    scale = place.colours
    assert scale is not None
    low, high = level(scale.levels[0], scale), level(scale.levels[-1], scale)
    place.add(
        dict(
            type="contour", x=single(mark.x), y=single(mark.y), z=single(level(mark.z, scale)), coloraxis=place.colour_axis,
            connectgaps=False,
            contours={"start": low, "end": high, "size": (high - low) / (len(scale.levels) - 1)},
            line={"width": 0.6, "color": PAPER}, **_values(mark.z, scale),
        )
    )  # fmt: skip
    _cover_holes(place, mark)


def _cover_holes(place: Place, mark: pic.Contours) -> None:
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
        place.add(dict(type="scatter", x=single(x), y=single(y), **cover))


def _relief(place: Place, mark: pic.Relief) -> None:
    z = single(level(mark.z, place.colours))
    place.add(
        dict(
            type="surface",
            x=single(mark.x),
            y=single(mark.y),
            z=z,
            coloraxis=place.colour_axis,
            connectgaps=False,
            **_values(mark.z, place.colours),
        )
    )


def _cells(place: Place, mark: pic.Cells) -> None:
    fills = list(dict.fromkeys(fill for row in mark.fills for fill in row))
    z = np.array([[fills.index(fill) for fill in row] for row in mark.fills], dtype=np.float32)
    count = len(fills)
    scale = [(edge / count, fill) for k, fill in enumerate(fills) for edge in (k, k + 1)]
    place.add(
        {
            "type": "heatmap",
            "z": z,
            "colorscale": scale,
            "zmin": -0.5,
            "zmax": count - 0.5,
            "showscale": False,
            "xgap": 3,
            "ygap": 3,
            "hoverinfo": "skip",
        }
    )
    for i, row in enumerate(mark.texts):
        for j, text in enumerate(row):
            place.annotate(
                text=safe(text), x=j, y=i, showarrow=False,
                font={"size": 11, "color": mark.inks[i][j]},
            )  # fmt: skip


MARKS: dict[type, Callable[..., None]] = {
    pic.Line: _line, pic.Band: _band, pic.Points: _points, pic.Stems: _stems, pic.Bars: _bars, pic.Text: _text,
    pic.Heat: _heat, pic.Contours: _contours, pic.Relief: _relief, pic.Cells: _cells,
}  # fmt: skip


def _x(place: Place, values: Any) -> Any:
    return on_axis(place.panel.x, values)


def _y(place: Place, values: Any) -> Any:
    return on_axis(place.panel.y, values)


def _values(z: Any, scale: pic.ColourScale | None) -> dict[str, Any]:
    """Return hover settings that show data units whatever the scale."""
    if scale is None or not (scale.log or scale.linear_within):
        return {"hovertemplate": "(%{x:.3g}, %{y:.3g}): %{z:.4g}<extra></extra>"}
    return {"customdata": single(z), "hovertemplate": "(%{x:.3g}, %{y:.3g}): %{customdata:.4g}<extra></extra>"}
