"""Draw a picture with matplotlib's object interface on an Agg canvas: headless, no global figure, safe in threads."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, LogNorm, Normalize, SymLogNorm
from matplotlib.container import BarContainer
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter, NullLocator, PercentFormatter
from mpl_toolkits.mplot3d import Axes3D
from mpl_toolkits.mplot3d.art3d import Poly3DCollection

from landscape.figures import picture as pic
from landscape.figures.preparation import log_ticks, short
from landscape.figures.style import COLOUR_MAP, FEW_COLUMNS, FEW_DECADES, FONT, GRID, INK, MISSING, MUTED, PAPER

_DASHES: dict[str, Any] = {
    "solid": "-", "dash": (0, (5, 2)), "dot": (0, (1, 1.4)), "dashdot": (0, (5, 1.5, 1, 1.5)), "longdash": (0, (9, 2)),
}  # fmt: skip
_MARKERS = {
    "circle": "o", "square": "s", "triangle": "^", "diamond": "D", "cross": "P", "x": "X", "star": "*",
    "triangle-down": "v", "plus": "+", "hole": "x", "bar": "_", "dot": ".", "slash": (2, 2, -45),
}  # fmt: skip
_THIN = ("plus", "hole", "slash")
_LINE_HEIGHT = 0.135  # inches, of the small print
_COLOUR_BAR = 0.8  # inches, with its labels


class LandscapeFigure(Figure):
    """A matplotlib figure that a notebook shows without pyplot having been imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()


def draw(picture: pic.Picture, width: float | None = None) -> Figure:
    """Return the picture as a matplotlib figure, ``width`` inches wide or as wide as its panels want to be."""
    num_rows, num_columns = len(picture.rows), max(len(row) for row in picture.rows)
    bars = _COLOUR_BAR * min(len(picture.scales), num_columns)
    panel_height = picture.panel_size[1]
    if width is None:
        width = max(picture.panel_size[0] * num_columns + bars + 0.1, 4.8)
    else:
        drawn = (width - bars - 0.1) / num_columns
        panel_height = max(panel_height * min(drawn / picture.panel_size[0], 1.0), 1.3)
    legend_labels = _labels(picture)
    legend_columns = _legend_columns(legend_labels, width)
    legend_rows = math.ceil(len(legend_labels) / legend_columns) if legend_labels else 0
    small_print = _wrap(picture, width)
    title = textwrap.wrap(picture.title, max(20, int(width / 0.083)))
    top = 0.1 + 0.18 * len(title) + 0.165 * legend_rows + (0.05 if legend_rows else 0.0)
    bottom = 0.08 + _LINE_HEIGHT * len(small_print)
    height = panel_height * num_rows + top + bottom
    figure = LandscapeFigure(figsize=(width, height), facecolor=PAPER)
    FigureCanvasAgg(figure)
    figure.set_layout_engine(
        "constrained", rect=(0, bottom / height, 1, 1 - (top + bottom) / height), w_pad=0.05, h_pad=0.05
    )
    panel_size = ((width - bars - 0.1) / num_columns, panel_height)
    axes = _draw_panels(figure, picture, num_rows, num_columns, panel_size)
    _colour_bars(figure, axes, picture, panel_height)
    text: dict[str, Any] = {"color": INK, "fontfamily": FONT, "parse_math": False}
    figure.text(0.1 / width, 1 - 0.08 / height, "\n".join(title), fontsize=9.5, weight="bold", va="top", **text)
    figure.text(
        0.1 / width,
        0.05 / height,
        "\n".join(small_print),
        fontsize=6.3,
        va="bottom",
        linespacing=1.3,
        **{**text, "color": MUTED},
    )
    handles: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if handles:
        figure.legend(
            list(handles.values()), list(handles), loc="upper left", ncols=legend_columns, fontsize=7, frameon=False,
            bbox_to_anchor=(0.02 / width, 1 - (0.1 + 0.18 * len(title)) / height), handlelength=2.6, columnspacing=1.4,
            borderaxespad=0.0, labelcolor=INK,
        )  # fmt: skip
    return figure


def _draw_panels(
    figure: Figure, picture: pic.Picture, num_rows: int, num_columns: int, size: tuple[float, float]
) -> list[Any]:
    grid = figure.add_gridspec(num_rows, num_columns)
    axes: list[Any] = []
    for i, row in enumerate(picture.rows):
        for j, panel in enumerate(row):
            if panel is None:
                continue
            axis: Any = figure.add_subplot(grid[i, j], projection="3d" if panel.z is not None else None)
            axis.set_title(_fitted(panel.title, size[0], 8), fontsize=8, color=INK, fontfamily=FONT, pad=4)
            colours = panel.colours or picture.colours
            for mark in panel.marks:
                _MARKS[type(mark)](axis, mark, panel, colours)
            if panel.z is not None:
                _finish_space(axis, panel, colours, num_ticks=5 if size[0] > 2 else 3)
            else:
                _finish_plane(axis, panel, size)
            axes.append(axis)
    return axes


def _line(axis: Axes, mark: pic.Line, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    axis.plot(
        mark.x, mark.y, color=mark.colour, linestyle=_DASHES[mark.dash], marker=_MARKERS.get(mark.marker, ""),
        markersize=3.2, markevery=mark.every,
        linewidth=mark.width, alpha=mark.alpha, label=_plain(mark.label) or "_nolegend_",
    )  # fmt: skip


def _band(axis: Axes, mark: pic.Band, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    label = _plain(mark.label) or "_nolegend_"
    look: dict[str, Any] = {"color": mark.colour, "alpha": mark.alpha, "linewidth": 0}
    if mark.style == "outline":
        look = {"facecolor": "none", "edgecolor": mark.colour, "linewidth": 0.6, "linestyle": (0, (3, 1))}
    elif mark.style == "hatch":
        look = {"facecolor": "none", "edgecolor": mark.colour, "linewidth": 0.0, "hatch": "/////", "alpha": 0.6}
    axis.fill_between(mark.x, mark.low, mark.high, label=label, **look)


def _points(axis: Axes, mark: pic.Points, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    axis.errorbar(
        mark.x, mark.y, yerr=mark.error, linestyle="none", marker=_MARKERS[mark.marker],
        markersize=mark.size * (1.7 if mark.marker == "dot" else 1.0),
        color=mark.colour, markerfacecolor="none" if mark.hollow else mark.colour, alpha=mark.alpha, elinewidth=1.1,
        capsize=2 if mark.error is not None else 0,
        markeredgewidth=0.0 if mark.marker == "dot" else 1.0 if mark.hollow or mark.marker in _THIN else 0.4,
        markeredgecolor=mark.colour, label=_plain(mark.label) or "_nolegend_", zorder=3,
    )  # fmt: skip


def _stems(axis: Axes, mark: pic.Stems, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    label = _plain(mark.label) or "_nolegend_"
    height = np.maximum(mark.height, mark.base)
    axis.vlines(mark.x, mark.base, height, color=mark.colour, alpha=mark.alpha, linewidth=0.5, label=label)


def _bars(axis: Axes, mark: pic.Bars, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    look: dict[str, Any] = {"color": mark.colour, "hatch": mark.hatch, "edgecolor": PAPER, "linewidth": 0.4}
    look |= {"error_kw": {"elinewidth": 1.0, "capsize": 2, "ecolor": INK}, "label": _plain(mark.label) or "_nolegend_"}
    bars: BarContainer
    if mark.horizontal:
        bars = axis.barh(mark.x, mark.height, mark.width, xerr=mark.error, **look)
    else:
        bars = axis.bar(mark.x, mark.height, mark.width, yerr=mark.error, **look)
    if mark.texts:
        axis.bar_label(bars, [_plain(text) for text in mark.texts], fontsize=6, color=INK, padding=1.5)


def _text(axis: Axes, mark: pic.Text, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    note = axis.annotate(
        _plain(mark.text), (mark.x, mark.y), xytext=mark.shift, textcoords="offset points", ha=mark.align, va="center",
        fontsize=mark.size, color=mark.colour, fontfamily=FONT, annotation_clip=False,
    )  # fmt: skip
    note.set_in_layout(False)
    if mark.colour == PAPER:
        note.set_path_effects([withStroke(linewidth=1.6, foreground=INK)])


def _heat(axis: Axes, mark: pic.Heat, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    axis.set_facecolor(MISSING)
    norm, colour_map = _norm(colours), _map(colours)
    axis.pcolormesh(
        mark.x, mark.y, np.ma.masked_invalid(mark.z), cmap=colour_map, norm=norm, shading="nearest", rasterized=True
    )
    axis.grid(False)
    size = 6.2 if len(mark.x) <= FEW_COLUMNS else 5.2
    for i, row in enumerate(mark.texts):
        for j, text in enumerate(row):
            red, green, blue, _ = colour_map(norm(mark.z[i, j]))
            ink = INK if 0.3 * red + 0.59 * green + 0.11 * blue > 0.5 or not np.isfinite(mark.z[i, j]) else PAPER
            # Inside the panel: measuring each for the layout, twice, takes longer than drawing it.
            look: dict[str, Any] = {"fontsize": size, "color": ink, "in_layout": False}
            axis.text(mark.x[j], mark.y[i], _plain(text), ha="center", va="center", **look)


def _contours(axis: Axes, mark: pic.Contours, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    assert colours is not None
    axis.set_facecolor(MISSING)
    z = np.ma.masked_invalid(mark.z)
    shared: dict[str, Any] = {"levels": colours.levels, "corner_mask": False}
    if np.isfinite(mark.z).any():
        axis.contourf(mark.x, mark.y, z, cmap=_map(colours), norm=_norm(colours), extend="neither", **shared)
        axis.contour(mark.x, mark.y, z, colors=PAPER, linewidths=0.45, **shared)


def _relief(axis: Axes3D, mark: pic.Relief, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    """Draw only the quads whose four corners were measured: nothing is filled in."""
    norm, colour_map = _norm(colours), _map(colours)
    x, y = np.meshgrid(mark.x, mark.y)
    height = np.log10(mark.z) if colours is not None and colours.log else mark.z
    corners = [(slice(None, -1), slice(None, -1)), (slice(None, -1), slice(1, None)),
               (slice(1, None), slice(1, None)), (slice(1, None), slice(None, -1))]  # fmt: skip
    quads = np.stack([np.stack([x[c], y[c], height[c]], -1) for c in corners], -2).reshape(-1, 4, 3)
    levels = np.mean([mark.z[c] for c in corners], axis=0).ravel()
    kept = np.isfinite(quads).all(axis=(1, 2))
    faces = colour_map(norm(levels[kept]))
    axis.add_collection3d(Poly3DCollection(quads[kept], facecolors=faces, edgecolors=(1, 1, 1, 0.35), linewidths=0.25))


def _cells(axis: Axes, mark: pic.Cells, panel: pic.Panel, colours: pic.ColourScale | None) -> None:
    for i, row in enumerate(mark.texts):
        for j, text in enumerate(row):
            axis.add_patch(Rectangle((j - 0.48, i - 0.46), 0.96, 0.92, facecolor=mark.fills[i][j], edgecolor="none"))
            axis.text(
                j,
                i,
                _plain(text),
                ha="center",
                va="center",
                fontsize=6.6,
                color=mark.inks[i][j],
                fontfamily=FONT,
                linespacing=1.25,
            )
    axis.grid(False)
    axis.tick_params(length=0)
    axis.xaxis.tick_top()
    for spine in axis.spines.values():
        spine.set_visible(False)


_MARKS: dict[type, Callable[..., None]] = {
    pic.Line: _line, pic.Band: _band, pic.Points: _points, pic.Stems: _stems, pic.Bars: _bars, pic.Text: _text,
    pic.Heat: _heat, pic.Contours: _contours, pic.Relief: _relief, pic.Cells: _cells,
}  # fmt: skip


def _finish_plane(axis: Axes, panel: pic.Panel, size: tuple[float, float]) -> None:
    plain = not any(isinstance(mark, pic.Heat | pic.Contours | pic.Cells) for mark in panel.marks)
    if plain:
        axis.grid(True, color=GRID, linewidth=0.5)
        axis.set_axisbelow(True)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        axis.spines[side].set_color(MUTED)
    axis.tick_params(labelsize=7, colors=INK, width=0.6)
    for name, setting, room in (("x", panel.x, size[0]), ("y", panel.y, size[1])):
        _finish_axis(axis, name, setting, room)


def _finish_axis(axis: Axes, name: str, setting: pic.Axis, room: float) -> None:
    target = axis.xaxis if name == "x" else axis.yaxis
    set_scale = axis.set_xscale if name == "x" else axis.set_yscale
    set_limits: Callable[..., Any] = axis.set_xlim if name == "x" else axis.set_ylim
    if setting.scale == "log":
        set_scale("log")
    elif setting.scale == "symlog":
        set_scale(
            "symlog", linthresh=setting.linear_within, linscale=0.9
        )  # 0.9: one unit per decade, as picture.symlog
    if setting.limits is not None:
        set_limits(*setting.limits)
    if setting.scale == "symlog" and setting.limits is not None:
        ticks = pic.symlog_ticks(*setting.limits, setting.linear_within)
        target.set_major_locator(FixedLocator(ticks))
        target.set_major_formatter(FixedFormatter([short(tick) for tick in ticks]))
        target.set_minor_locator(NullLocator())
    elif setting.scale == "log":
        target.set_minor_formatter(NullFormatter())
        if setting.limits is not None and setting.limits[1] < FEW_DECADES * setting.limits[0]:
            ticks = log_ticks(*setting.limits)
            target.set_major_locator(FixedLocator(ticks))
            target.set_major_formatter(FixedFormatter([short(tick) for tick in ticks]))
    if setting.categories:
        target.set_major_locator(FixedLocator(list(range(len(setting.categories)))))
        target.set_major_formatter(FixedFormatter([_plain(text) for text in setting.categories]))
        if setting.tilted and name == "x":
            for label in axis.get_xticklabels():
                label.set(rotation=45, ha="right", rotation_mode="anchor")
    elif setting.scale == "linear" and name == "x":
        target.set_major_locator(MaxNLocator(min(9, max(2, int((room - 0.4) / 0.4))), steps=[1, 2, 5, 10]))
    if setting.percent:
        target.set_major_formatter(PercentFormatter(1.0, decimals=0))
    target.set_label_text(_fitted(setting.label, room, 7.5), fontsize=7.5, color=INK, fontfamily=FONT)


def _finish_space(axis: Axes3D, panel: pic.Panel, colours: pic.ColourScale | None, num_ticks: int) -> None:
    assert panel.z is not None
    axis.view_init(elev=28, azim=-58)
    axis.set_box_aspect((1, 1, 0.75), zoom=0.9)
    axis.tick_params(labelsize=6, colors=INK, pad=0)
    for name, setting in (("x", panel.x), ("y", panel.y), ("z", panel.z)):
        limits = setting.limits
        if name == "z" and limits is not None and colours is not None and colours.log:
            limits = (math.log10(limits[0]), math.log10(limits[1]))
            ticks = [tick for tick in colours.ticks if limits[0] <= math.log10(tick) <= limits[1]]
            axis.set_zticks([math.log10(tick) for tick in ticks], [short(tick) for tick in ticks])
        elif name != "z":
            getattr(axis, f"{name}axis").set_major_locator(MaxNLocator(num_ticks))
        if limits is not None:
            getattr(axis, f"set_{name}lim")(*limits)
        getattr(axis, f"set_{name}label")(_plain(setting.label), fontsize=6.8, color=INK, labelpad=-2)


def _colour_bars(figure: Figure, axes: list[Any], picture: pic.Picture, height: float) -> None:
    """Draw a bar for each scale, beside the panels that use it; one for each panel where those do not fill a column."""
    columns = [axis.get_subplotspec().colspan.start for axis in axes]
    for scale in picture.scales:
        users = [k for k, panel in enumerate(picture.panels) if (panel.colours or picture.colours) == scale]
        own = {columns[k] for k in users}
        others = {columns[k] for k in range(len(axes)) if k not in users}
        if len(picture.scales) == 1 or (len(own) == 1 and not own & others):
            room = height * len({axes[k].get_subplotspec().rowspan.start for k in users})
            _colour_bar(figure, [axes[k] for k in users], scale, room)
        else:
            for k in users:
                _colour_bar(figure, [axes[k]], scale, height)


def _colour_bar(figure: Figure, axes: list[Any], colours: pic.ColourScale, room: float) -> None:
    mappable = ScalarMappable(_norm(colours), _map(colours))
    bar = figure.colorbar(mappable, ax=axes, shrink=0.9, pad=0.02, aspect=28 if len(axes) > 1 else 18, fraction=0.06)
    if colours.ticks:
        bar.ax.yaxis.set_major_locator(FixedLocator(list(colours.ticks)))
        bar.ax.yaxis.set_major_formatter(FixedFormatter([short(tick) for tick in colours.ticks]))
        bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.ax.tick_params(labelsize=7, colors=INK)
    bar.set_label(_fitted(colours.label, room * 0.9, 7.5), fontsize=7.5, color=INK)


def _norm(colours: pic.ColourScale | None) -> Normalize:
    if colours is None:
        return Normalize()
    if colours.linear_within:  # 0.9: as picture.symlog
        return SymLogNorm(colours.linear_within, 0.9, colours.low, colours.high, base=10)
    return LogNorm(colours.low, colours.high) if colours.log else Normalize(colours.low, colours.high)


def _map(colours: pic.ColourScale | None) -> Colormap:
    return matplotlib.colormaps[colours.colour_map if colours is not None else COLOUR_MAP]


def _labels(picture: pic.Picture) -> list[str]:
    found = (getattr(mark, "label", "") for panel in picture.panels for mark in panel.marks)
    return list(dict.fromkeys(label for label in found if label))


def _legend_columns(labels: list[str], width: float) -> int:
    longest = max((len(label) for label in labels), default=1)
    return max(1, min(len(labels), int((width - 0.2) / (0.56 + 0.062 * longest)))) if labels else 1


def _wrap(picture: pic.Picture, width: float) -> list[str]:
    columns = max(30, int(width / 0.051))
    return [line for text in (picture.note, picture.card) if text for line in textwrap.wrap(text, columns)]


def _fitted(text: str, room: float, size: float) -> str:
    """Break a label so that it fits into ``room`` inches at a font of ``size`` points."""
    most = max(10, int(room / (0.0078 * size)))
    lines = [part for line in text.split("\n") for part in (textwrap.wrap(line, most) or [""])]
    return _plain("\n".join(lines))


def _plain(text: str) -> str:
    """Keep matplotlib from reading a class name's dollar signs as mathematics."""
    return text.replace("$", r"\$")
