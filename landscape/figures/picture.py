"""A figure before it is drawn: panels of marks with their axes, the same for every backend.

The modules that know Datasets build a :class:`Picture`; ``matplotlib_marks`` and ``plotly_marks`` draw it. So what
is shown,
where it stands and what it is called is written once, and both backends show the same numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from landscape.figures.style import COLOUR_MAP

Array: TypeAlias = npt.NDArray[Any]
Backend: TypeAlias = Literal["matplotlib", "plotly"]


@dataclass(frozen=True)
class Axis:
    """One axis: what it means, its scale and its range in data units.

    ``symlog`` is linear within ``linear_within`` of zero and logarithmic beyond, see :func:`symlog`.
    ``categories`` names the positions 0, 1, 2, ...
    """

    label: str = ""
    scale: Literal["linear", "log", "symlog"] = "linear"
    limits: tuple[float, float] | None = None
    linear_within: float = 1.0
    categories: tuple[str, ...] = ()
    tilted: bool = False
    percent: bool = False


@dataclass(frozen=True)
class Line:
    """A line through (x, y), with markers if ``marker`` is named: at every point, or every ``every``-th one."""

    x: Array
    y: Array
    colour: str
    label: str = ""
    dash: str = "solid"
    marker: str = ""
    width: float = 1.6
    alpha: float = 1.0
    every: int = 1


@dataclass(frozen=True)
class Band:
    """The area between ``low`` and ``high`` over ``x``: filled, hatched, or only outlined by a thin line."""

    x: Array
    low: Array
    high: Array
    colour: str
    label: str = ""
    alpha: float = 0.18
    style: Literal["fill", "outline", "hatch"] = "fill"


@dataclass(frozen=True)
class Points:
    """Markers at (x, y), with optional error bars in y, (k,) or (2, k) below and above, and one hover text each."""

    x: Array
    y: Array
    colour: str
    marker: str = "circle"
    label: str = ""
    size: float = 5.0
    alpha: float = 1.0
    error: Array | None = None
    hover: tuple[str, ...] = ()
    hollow: bool = False


@dataclass(frozen=True)
class Stems:
    """Thin vertical lines from ``base`` to ``height`` at each x: raw nodes with their weights."""

    x: Array
    height: Array
    base: float
    colour: str
    label: str = ""
    alpha: float = 0.45


@dataclass(frozen=True)
class Bars:
    """Bars of ``width`` centred at ``x`` with optional error bars; ``texts`` stand above them.

    ``horizontal`` bars are centred at ``x`` on the vertical axis and ``height`` long.
    """

    x: Array
    height: Array
    width: float
    colour: str
    hatch: str = ""
    label: str = ""
    error: Array | None = None
    texts: tuple[str, ...] = ()
    horizontal: bool = False


@dataclass(frozen=True)
class Text:
    """A short text at (x, y) in data units, shifted by points."""

    x: float
    y: float
    text: str
    colour: str
    align: Literal["left", "center", "right"] = "left"
    shift: tuple[float, float] = (0.0, 0.0)
    size: float = 7.0


@dataclass(frozen=True)
class Heat:
    """Coloured cells: ``z[i, j]`` at ``(x[j], y[i])``; NaN is a hole.

    ``texts[i][j]`` stands in a cell, ``hover[i][j]`` beside the pointer; both may be empty.
    """

    x: Array
    y: Array
    z: Array
    texts: tuple[tuple[str, ...], ...] = ()
    hover: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Contours:
    """Filled contours: ``z[i, j]`` at ``(x[j], y[i])``; what touches a NaN is not drawn."""

    x: Array
    y: Array
    z: Array


@dataclass(frozen=True)
class Relief:
    """A surface in space: height ``z[i, j]`` at ``(x[j], y[i])``; NaN is a hole."""

    x: Array
    y: Array
    z: Array


@dataclass(frozen=True)
class Cells:
    """A table: ``texts[i][j]`` on ``fills[i][j]`` for row i and column j, written in ``inks[i][j]``."""

    texts: tuple[tuple[str, ...], ...]
    fills: tuple[tuple[str, ...], ...]
    inks: tuple[tuple[str, ...], ...]


Mark: TypeAlias = Line | Band | Points | Stems | Bars | Text | Heat | Contours | Relief | Cells


@dataclass(frozen=True)
class ColourScale:
    """One colour scale for all panels of a picture; ``levels`` are the contour levels, in data units.

    With ``linear_within`` it is symmetrically logarithmic beyond that distance from zero, see :func:`symlog`.
    """

    label: str
    low: float
    high: float
    log: bool = False
    levels: tuple[float, ...] = ()
    ticks: tuple[float, ...] = ()
    linear_within: float = 0.0
    colour_map: str = COLOUR_MAP

    def position(self, values: Any) -> Any:
        """Return where values lie on the scale: their logarithm, or their symmetric logarithm, where it has one."""
        if self.linear_within:
            return (
                float(symlog(values, self.linear_within))
                if np.ndim(values) == 0
                else symlog(values, self.linear_within)
            )
        if self.log:
            return float(np.log10(values)) if np.ndim(values) == 0 else np.log10(values)
        return values


@dataclass(frozen=True)
class Panel:
    """One pair of axes and what is drawn in it."""

    title: str
    x: Axis
    y: Axis
    marks: tuple[Mark, ...]
    z: Axis | None = None  # set: a panel in space
    colours: ColourScale | None = None  # set: a scale of its own instead of the picture's


@dataclass(frozen=True)
class Picture:
    """A whole figure: rows of panels, title, scale card, and what the panels have in common."""

    title: str
    rows: tuple[tuple[Panel | None, ...], ...]
    card: str = ""
    note: str = ""
    colours: ColourScale | None = None
    panel_size: tuple[float, float] = (3.3, 2.6)  # inches
    linked: bool = False  # zooming one panel zooms all
    legend_titles: dict[str, str] = field(default_factory=dict)

    @property
    def panels(self) -> list[Panel]:
        """The panels in reading order, without the empty places."""
        return [panel for row in self.rows for panel in row if panel is not None]

    @property
    def scales(self) -> list[ColourScale]:
        """The colour scales that panels use, each once."""
        used = [panel.colours or self.colours for panel in self.panels]
        return [scale for k, scale in enumerate(used) if scale is not None and scale not in used[:k]]


def symlog(value: npt.ArrayLike, linear_within: float = 1.0) -> Array:
    """Return the position of ``value`` on a symmetric logarithmic axis.

    ``u(x) = x / w`` within ``|x| <= w`` and ``sign(x) (1 + log10(|x| / w))`` beyond: continuous, odd,
    one unit per decade.

    Parameters
    ----------
    value
        Numbers on the axis; NaN stays NaN.
    linear_within
        The half-width w of the linear part.

    Returns
    -------
    numpy.ndarray
        Positions, the shape of ``value``.

    Examples
    --------
    >>> symlog([-100.0, -0.5, 0.0, 1.0, 10.0]).tolist()
    [-3.0, -0.5, 0.0, 1.0, 2.0]
    """
    scaled = np.asarray(value, dtype=np.float64) / linear_within
    size = np.abs(scaled)
    outside = np.sign(scaled) * (1.0 + np.log10(np.maximum(size, 1.0)))
    return np.where(size <= 1.0, scaled, outside)


def symlog_inverse(position: npt.ArrayLike, linear_within: float = 1.0) -> Array:
    """Return the value at a position of :func:`symlog`.

    Examples
    --------
    >>> symlog_inverse([-3.0, -0.5, 2.0]).tolist()
    [-100.0, -0.5, 10.0]
    """
    u = np.asarray(position, dtype=np.float64)
    size = np.abs(u)
    outside = np.sign(u) * 10.0 ** np.maximum(size - 1.0, 0.0)
    return np.asarray(np.where(size <= 1.0, u, outside) * linear_within)


def symlog_ticks(low: float, high: float, linear_within: float = 1.0) -> list[float]:
    """Return ticks of a symmetric logarithmic axis: zero, the ends of the linear part, decades; at most nine."""
    ends = [abs(low), abs(high), linear_within]
    decades = int(np.floor(np.log10(max(ends) / linear_within) + 1e-9))
    step = max(1, int(np.ceil(decades / 3)))
    sizes = [linear_within * 10.0**k for k in range(0, decades + 1, step)]
    values = sorted({0.0, *sizes, *(-size for size in sizes)})
    return [value for value in values if low <= value <= high]
