"""Figures of a surface beside its quadratic models: that of the derivatives at the weights and the fitted one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import contourpy
import numpy as np
import numpy.typing as npt
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures import preparation as prep
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import (
    Array,
    Axis,
    Backend,
    ColourScale,
    Contours,
    Line,
    Mark,
    Panel,
    Picture,
    Points,
    Text,
)
from landscape.figures.style import INK, MUTED, PAPER, SEQUENCE

Kind: TypeAlias = Literal["autograd", "fitted"]
KINDS: tuple[Kind, ...] = ("autograd", "fitted")
# Points of a drawn parabola, and of each side of the grid on which a model's contour lines are found.
FINE_LINE = 401
FINE_PLANE = 161
# Lanes side by side in a plane's picture.
WIDEST = 4
# How many of its fitted radii a line's panel shows.
RADII_SHOWN = 2.5
# The room above the curves for two lines of text, as a share of their range.
HEADROOM = 0.34
RIM = SEQUENCE[1]
_DASHES = {"autograd": "dash", "fitted": "dot"}
_NAMES = {"autograd": "Hessian at the weights", "fitted": "fitted within r"}
_CAVEAT = (
    "The Hessian does not see the kinks of ReLUs, whose curvature at a distance the fit includes: the two may differ by any "
    "factor, and neither is wrong."
)


@dataclass(frozen=True)
class _View:
    """What of which results is drawn."""

    data: Mapping[str, xr.Dataset]
    surface: xr.Dataset
    lanes: list[str]
    kinds: list[Kind]
    pair: int | None
    variable: str

    def part(self, lane: str, kind: Kind) -> xr.Dataset:
        """Return one lane's models and values."""
        return _of_lane(self.surface, lane, self.pair, kind, self.variable)

    def radius(self, lane: str) -> float:
        """Return the radius of a lane's fit, NaN where there is none."""
        return float(self.part(lane, "fitted")[f"{_prefix(self.variable, 'fitted')}radius"])

    def model(self, lane: str, kind: Kind, **coordinates: Array) -> Array:
        """Return a model at coordinates."""
        return evaluate_quadratic(self.surface, lane, pair=self.pair, kind=kind, variable=self.variable, **coordinates)

    def measured(self, lane: str) -> Array:
        """Return (K,) or (M, K), NaN where it was not measured or is not finite."""
        part = self.part(lane, self.kinds[0])
        values = part[self.variable].where(part["done"]) if "done" in part else part[self.variable]
        values = values.transpose(*(axis for axis in ("beta", "alpha") if axis in values.dims))
        return np.asarray(values.where(np.isfinite(values)).values)


def evaluate_quadratic(
    surface: xr.Dataset,
    lane: str,
    *,
    pair: int | None = None,
    kind: Kind = "autograd",
    variable: str = "loss",
    alpha: npt.ArrayLike | None = None,
    beta: npt.ArrayLike | None = None,
) -> Array:
    r"""Return a quadratic model :math:`c + b^T t + t^T A t / 2` of a lane on the surface's grid.

    Parameters
    ----------
    surface
        A line or plane with its models, from :func:`landscape.surface.quadratic.quadratic_models`.
    lane, pair
        Which; the first direction pair by default.
    kind
        ``"autograd"``: from the derivatives at the weights, everywhere; ``"fitted"``: NaN beyond the radius of the fit.
    variable
        The loss that is modelled.
    alpha, beta
        Other coordinates than the grid's, (K,) and (M,).

    Returns
    -------
    numpy.ndarray
        (K,) on a line, (M, K) on a plane, in the loss's units.

    Raises
    ------
    LandscapeError
        For an unknown kind, lane or pair, or a surface without that model.

    Examples
    --------
    >>> line = xr.Dataset(
    ...     {
    ...         "loss": (("pair", "alpha", "lane"), np.zeros((1, 3, 1))),
    ...         "centre": ("lane", [2.0]),
    ...         "slope": (("pair", "axis", "lane"), [[[1.0]]]),
    ...         "curvature": (("pair", "axis", "other_axis", "lane"), [[[[4.0]]]]),
    ...     },
    ...     coords={"pair": [0], "alpha": [-1.0, 0.0, 1.0], "lane": ["all"]},
    ... )
    >>> evaluate_quadratic(line, "all").tolist()
    [3.0, 2.0, 5.0]
    """
    part = _of_lane(surface, lane, pair, kind, variable)
    prefix = _prefix(variable, kind)
    axes = [axis for axis in ("alpha", "beta") if axis in surface.dims]
    given = {"alpha": alpha, "beta": beta}
    grid = [np.asarray(surface[axis].values if given[axis] is None else given[axis], dtype=np.float64) for axis in axes]
    offsets = np.stack(np.meshgrid(*grid, indexing="xy"))  # (axes, [M,] K)
    slope, curvature = part[f"{prefix}slope"].values, part[f"{prefix}curvature"].values
    values = float(part[f"{prefix}centre"]) + np.tensordot(slope, offsets, 1)
    values = values + (offsets * np.tensordot(curvature, offsets, 1)).sum(0) / 2
    if kind == "fitted":
        squares = offsets[0] ** 2
        if len(axes) == 2:
            squares = squares + (offsets[1] / float(surface.attrs.get("fitted_aspect", 1.0))) ** 2
        values = np.where(np.sqrt(squares) <= float(part[f"{prefix}radius"]) * (1 + 1e-9), values, np.nan)
    return np.asarray(values)


def plot_quadratic(
    surface: xr.Dataset,
    *,
    lanes: str | Sequence[str] | None = None,
    pair: int | None = None,
    variable: str = "loss",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw a measured line or plane with both of its quadratic models.

    Parameters
    ----------
    surface
        A line or plane with its models, from :func:`landscape.surface.quadratic.quadratic_models`; of a surface that
        was only fitted, only the fit is drawn.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default the groups, or all where there are none.
    pair
        Which direction pair; the first by default.
    variable
        The loss that is drawn.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Line: a panel per lane, each with its own vertical scale: the measured values, the parabola of the derivatives
        (dashed) and the fitted one (dotted), drawn within its radius only. Plane: a column per lane, a row per model;
        the measured loss in colour, the model as dashed contour lines at the same levels, where they are right on top
        of the measured ones.

    Raises
    ------
    LandscapeError
        If there is no model, or a lane or pair is unknown.
    """
    data = prep.as_mapping(surface, variable, "alpha")
    dataset = next(iter(data.values()))
    kinds = [kind for kind in KINDS if f"{_prefix(variable, kind)}curvature" in dataset]
    if "fitted" not in kinds:
        raise LandscapeError(f"expected quadratic models of '{variable}' in the surface, got none: add them first")
    chosen = prep.choose_lanes(data, lanes, prep.GROUP_LANES)
    view = _View(data, dataset, chosen, kinds, pair, variable)
    return render((_plane_picture if "beta" in dataset[variable].dims else _line_picture)(view), backend)


def _prefix(variable: str, kind: str) -> str:
    if kind not in KINDS:
        raise unknown_name("quadratic model", kind, KINDS)
    return variable.removesuffix("loss") + ("fitted_" if kind == "fitted" else "")


def _of_lane(surface: xr.Dataset, lane: str, pair: int | None, kind: str, variable: str) -> xr.Dataset:
    """Return the models and values of one lane and pair."""
    prefix = _prefix(variable, kind)
    if f"{prefix}curvature" not in surface:
        raise LandscapeError(f"expected the {kind} quadratic of '{variable}' in the surface, got none: add it first")
    known = [str(name) for name in surface["lane"].values]
    if lane not in known:
        raise unknown_name("lane", lane, known)
    pairs = surface["pair"].values.tolist()
    if pair is not None and pair not in pairs:
        raise unknown_name("direction pair", str(pair), map(str, pairs))
    return surface.sel(lane=lane, pair=pairs[0] if pair is None else pair)


def _line_picture(view: _View) -> Picture:
    dataset, lanes = view.surface, view.lanes
    looks = prep.lane_looks(view.data, lanes)
    alpha = np.asarray(dataset["alpha"].values, dtype=np.float64)
    panels = []
    for lane in lanes:
        values, radius = view.measured(lane), view.radius(lane)
        limits = _shown(alpha, radius)
        inside = (alpha >= limits[0]) & (alpha <= limits[1])
        marker = "circle" if inside.sum() <= 41 else ""  # where points can be told apart
        low, high = prep.padded(*prep.finite_range([values[inside]]))
        top = high + (high - low) * HEADROOM
        marks: list[Mark] = [Line(alpha, values, looks[lane].colour, "measured", marker=marker, width=2.2, alpha=0.75)]
        marks += _parabolas(view, lane, limits)
        if np.isfinite(radius):
            rims = [side for side in (-radius, radius) if limits[0] <= side <= limits[1]]
            marks += [Line(np.full(2, side), np.array([low, high]), MUTED, width=0.7) for side in rims]
        for row, kind in enumerate(view.kinds):
            text = _described(view.part(lane, kind), kind, view.variable)
            marks.append(Text(sum(limits) / 2, top, text, INK, "center", (0.0, -6.0 - 9.5 * row), 6.3))
        y_axis = Axis(_loss_label(dataset, view.variable), limits=(low, top))
        x_axis = Axis("", limits=prep.padded(*limits, 0.02))
        panels.append(Panel(prep.lane_label(dataset, lane), x_axis, y_axis, tuple(marks)))
    rows, columns = prep.grid_shape(len(panels), widest=3)
    return Picture(
        "Loss on a line through the weights, with its quadratic models",
        arrange(panels, rows, columns, _axis_label(dataset, "alpha")),
        prep.scale_card(view.data, lanes=lanes),
        _note(view, "Every panel has its own ranges. Thin vertical lines: ±r."),
        panel_size=(3.0, 2.5),
    )


def _shown(alpha: Array, radius: float) -> tuple[float, float]:
    """Return the part of a line that is drawn: a few radii of the fit, or all where nothing was fitted."""
    reach = RADII_SHOWN * radius if np.isfinite(radius) else np.inf
    return max(float(alpha[0]), -reach), min(float(alpha[-1]), reach)


def _parabolas(view: _View, lane: str, limits: tuple[float, float]) -> list[Mark]:
    fine = np.linspace(*limits, FINE_LINE)
    widths = {"autograd": 1.2, "fitted": 1.8}
    return [
        Line(fine, view.model(lane, kind, alpha=fine), INK, _NAMES[kind], _DASHES[kind], width=widths[kind])
        for kind in view.kinds
    ]


def _described(part: xr.Dataset, kind: Kind, variable: str) -> str:
    """Return a model's curvature with its error, and the radius of a fit."""
    prefix = _prefix(variable, kind)
    value = prep.with_error(float(part[f"{prefix}curvature"][0, 0]), float(part[f"{prefix}curvature_stderr"][0, 0]))
    if kind == "autograd":
        return f"dᵀHd = {value}"
    radius = float(part[f"{prefix}radius"])
    return f"fitted {value}, r = {prep.short(radius)}" if np.isfinite(radius) else "no radius qualifies"


def _plane_picture(view: _View) -> Picture:
    dataset, lanes = view.surface, view.lanes
    values = {lane: view.measured(lane) for lane in lanes}
    scale = prep.colour_scale(values.values(), _loss_label(dataset, view.variable))
    alpha, beta = (np.asarray(dataset[axis].values, dtype=np.float64) for axis in ("alpha", "beta"))
    rows = []
    for start in range(0, len(lanes), WIDEST):
        for kind in view.kinds:
            row: list[Panel | None] = []
            for lane in lanes[start : start + WIDEST]:
                x = Axis(_axis_label(dataset, "alpha") if kind == view.kinds[-1] else "", limits=(alpha[0], alpha[-1]))
                y = Axis(_axis_label(dataset, "beta") if not row else "", limits=(beta[0], beta[-1]))
                marks = _plane_marks(view, lane, kind, values[lane], scale)
                row.append(Panel(f"{prep.lane_label(dataset, lane)}: {_NAMES[kind]}", x, y, marks))
            rows.append(tuple(row))
    remark = "Colour and thin white lines: measured; dashed: the model, at the same levels. +: the weights."
    return Picture(
        "Loss on a plane through the weights, with its quadratic models",
        tuple(rows),
        prep.scale_card(view.data, lanes=lanes),
        _note(view, remark),
        scale,
        (2.75, 2.5),
        linked=True,
    )


def _plane_marks(view: _View, lane: str, kind: Kind, values: Array, scale: ColourScale) -> tuple[Mark, ...]:
    alpha, beta = (np.asarray(view.surface[axis].values, dtype=np.float64) for axis in ("alpha", "beta"))
    marks: list[Mark] = [Contours(alpha, beta, values)]
    i, j = np.nonzero(~np.isfinite(values))
    if i.size:
        marks.append(Points(alpha[j], beta[i], MUTED, "hole", "not measured", 3.0))
    marks += _model_lines(view, lane, kind, scale)
    if kind == "fitted":
        marks += _ellipse(view.surface, view.radius(lane), alpha, beta)
    return (*marks, Points(np.zeros(1), np.zeros(1), PAPER, "plus", "", 7.0))


def _model_lines(view: _View, lane: str, kind: Kind, scale: ColourScale) -> list[Mark]:
    """Return the model's contour lines at the levels of the colour scale, on a light ground to stand out everywhere."""
    ends = {axis: view.surface[axis].values.astype(np.float64)[[0, -1]] for axis in ("alpha", "beta")}
    grid = {axis: np.linspace(float(low), float(high), FINE_PLANE) for axis, (low, high) in ends.items()}
    z = view.model(lane, kind, **grid)
    if not np.isfinite(z).any():
        return []
    generator = contourpy.contour_generator(grid["alpha"], grid["beta"], np.ma.masked_invalid(z), corner_mask=True)
    gap = np.full((1, 2), np.nan)
    lines: list[Array] = [np.asarray(line) for level in scale.levels for line in generator.lines(level)]
    if not lines:
        return []
    x, y = np.concatenate([piece for line in lines for piece in (line, gap)]).T
    return [Line(x, y, PAPER, width=2.0, alpha=0.55), Line(x, y, INK, "quadratic model", "dash", width=1.1)]


def _ellipse(dataset: xr.Dataset, radius: float, alpha: Array, beta: Array) -> list[Mark]:
    if not np.isfinite(radius):
        return [Text(float(alpha.mean()), float(beta[-1]), "no radius qualifies", PAPER, "center", (0.0, -9.0))]
    turn = np.linspace(0, 2 * np.pi, 181)
    x, y = radius * np.cos(turn), radius * float(dataset.attrs.get("fitted_aspect", 1.0)) * np.sin(turn)
    inside = (x >= alpha[0]) & (x <= alpha[-1]) & (y >= beta[0]) & (y <= beta[-1])
    x, y = np.where(inside, x, np.nan), np.where(inside, y, np.nan)
    return [Line(x, y, PAPER, width=2.6, alpha=0.7), Line(x, y, RIM, "rim of the fit", width=1.3)]


def _note(view: _View, remark: str) -> str:
    dataset, parts = view.surface, [remark]
    if dataset.sizes["pair"] > 1:
        shown = int(dataset["pair"].values[0]) if view.pair is None else view.pair
        parts.insert(0, f"Direction pair {shown} of {dataset.sizes['pair']} (numbered from 0).")
    radii = ", ".join(f"{lane} {prep.short(view.radius(lane))}" for lane in view.lanes)
    rule = str(dataset.attrs.get("fitted_radius_rule", ""))
    parts.append(f"r: {radii if len(view.lanes) <= 12 else 'in the panels'}{f' ({rule})' if rule else ''}.")
    parts.append("± of a fit: from its residuals, as if independent.")
    if "autograd" in view.kinds:
        parts.append(f"± of dᵀHd: standard error over images. {_CAVEAT}")
    return " ".join(parts)


def _loss_label(dataset: xr.Dataset, variable: str) -> str:
    objective = str(dataset.attrs.get("objective", "ce"))
    name = "cross-entropy" if not variable.endswith("own_loss") else objective
    prefix = variable.removesuffix("loss").removesuffix("own_").strip("_").replace("_", " ")
    return f"{f'{prefix} ' if prefix else ''}loss ({name}), nats"


def _axis_label(dataset: xr.Dataset, axis: str) -> str:
    plain = {"alpha": "α, along the direction", "beta": "β, along direction 2"}
    return str(dataset.attrs.get(f"{axis}_label", plain[axis]))
