"""Figures of the loss on lines and planes through the weights; what was not measured stays a hole."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures import preparation as prep
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import (
    Array,
    Axis,
    Backend,
    Band,
    Contours,
    Line,
    Mark,
    Panel,
    Picture,
    Points,
    Relief,
    Text,
)
from landscape.figures.style import MUTED, PAPER, Look, optimizer_looks


def plot_lines(
    surface_line: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    band: Literal["range", "stderr"] = "range",
    variable: str = "loss",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw the loss on lines through the weights, with a band over the random directions.

    Parameters
    ----------
    surface_line
        A ``surface_line`` Dataset: one panel with all lanes; or ``{optimizer: Dataset}``: a panel per lane with all
        optimizers.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default the groups, or all where there are none.
    band
        ``"range"``: median and smallest to largest over directions; ``"stderr"``: mean ± standard error.
    variable
        ``"loss"`` or ``"own_loss"``.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        All panels share both axes.
    """
    if band not in ("range", "stderr"):
        raise unknown_name("band", band, ["range", "stderr"])
    data = prep.as_mapping(surface_line, variable)
    chosen = prep.choose_lanes(data, lanes, prep.GROUP_LANES)
    curves = {name: _masked(dataset, variable).transpose("pair", "alpha", "lane") for name, dataset in data.items()}
    several = len(data) > 1
    looks = optimizer_looks(list(data)) if several else prep.lane_looks(data, chosen)
    first = next(iter(data.values()))
    groups = {"": [(lane, next(iter(data))) for lane in chosen]}
    if several:
        groups = {lane: [(lane, name) for name in data] for lane in chosen}
    drawn = [c.sel(lane=[lane for lane in chosen if lane in c["lane"].values]) for c in curves.values()]
    low, high = prep.finite_range(drawn)
    log = low > 0 and high / low > 40
    y_axis = Axis(
        f"{_objective(first)}" + (" (log scale)" if log else ""),
        "log" if log else "linear",
        prep.padded(low, high, log=log),
    )
    x_axis = Axis(_axis_label(data, "alpha"), limits=prep.padded(*prep.finite_range([c["alpha"] for c in drawn]), 0.02))
    named = set(chosen if several else prep.thinned(chosen, 16))
    panels = []
    for lane_title, members in groups.items():
        marks: list[Mark] = []
        for lane, name in members:
            if lane not in curves[name]["lane"].values:
                continue
            label = name if several else prep.lane_label(first, lane) if lane in named else ""
            look = looks[name if several else lane]
            values = curves[name].sel(lane=lane).values
            marks += _curve(curves[name]["alpha"].values, values, label, look, band=band, shade=len(members) <= 4)
        panels.append(Panel(prep.lane_label(first, lane_title) if lane_title else "", x_axis, y_axis, tuple(marks)))
    rows, columns = prep.grid_shape(len(panels), widest=4)
    note = _spread_note(band, max(c.sizes["pair"] for c in curves.values()), max(map(len, groups.values())))
    size = (5.4, 3.4) if len(panels) == 1 else (3.1, 2.5)
    picture = Picture(
        "Loss on lines through the weights",
        arrange(panels, rows, columns, x_axis.label),
        prep.scale_card(data, lanes=chosen),
        note,
        panel_size=size,
        linked=True,
    )
    return render(picture, backend)


def _spread_note(band: str, count: int, num_lines: int) -> str:
    if count == 1:
        return "One direction."
    if num_lines > 4:
        return f"{'Median' if band == 'range' else 'Mean'} over {count} directions; no bands, for legibility."
    spread = "Median, band from smallest to largest" if band == "range" else "Mean ± standard error"
    return f"{spread} over {count} directions."


def _curve(alpha: Array, values: Array, label: str, look: Look, *, band: str, shade: bool) -> list[Mark]:
    measured = np.isfinite(values).any(axis=0)
    middle, low, high = (np.full(alpha.size, np.nan) for _ in range(3))
    kept = values[:, measured]
    if band == "range":
        middle[measured], low[measured], high[measured] = np.nanmedian(kept, 0), np.nanmin(kept, 0), np.nanmax(kept, 0)
    else:
        count = np.isfinite(kept).sum(0)
        error = np.sqrt(np.nansum((kept - np.nanmean(kept, 0)) ** 2, 0) / np.maximum(count - 1, 1) / count)
        middle[measured] = np.nanmean(kept, 0)
        low[measured], high[measured] = middle[measured] - error, middle[measured] + error
    marks: list[Mark] = []
    if values.shape[0] > 1 and shade:
        marks.append(Band(alpha, low, high, look.colour))
    marks.append(Line(alpha, middle, look.colour, label, look.dash))
    return marks


def plot_contours(
    surface: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    pair: int | None = None,
    relative: bool = False,
    variable: str = "loss",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw the loss on a plane as filled contours: lanes side by side, optimizers below each other, all on one scale.

    Parameters
    ----------
    surface
        A ``surface`` Dataset, or ``{optimizer: Dataset}``.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default the groups, or all where there are none.
    pair
        Which pair of directions; the first by default.
    relative
        Draw the loss minus its value at the weights, so that "lower" does not mix with "flatter".
    variable
        ``"loss"`` or ``"own_loss"``.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Grid points that are not done or not finite are marked and left open, never interpolated.

    Raises
    ------
    LandscapeError
        If the pair or a lane is unknown, or there is nothing to draw.
    """
    data = prep.as_mapping(surface, variable)
    planes = _planes(data, lanes, pair, relative, variable)
    title = "Loss on a plane through the weights" + (", relative to the weights" if relative else "")
    return render(_contour_picture(data, planes, title, _value_label(data, relative), _which_pair(data, pair)), backend)


def _contour_picture(
    data: Mapping[str, xr.Dataset], planes: Mapping[tuple[str, str], xr.DataArray], title: str, label: str, remark: str
) -> Picture:
    scale = prep.colour_scale(planes.values(), label)
    note = "+: the weights, with their value; ○: lowest grid point; grey with ×: not measured, left open."
    rows = _rows(data, planes, _contour_panel)
    card = prep.scale_card(data)
    return Picture(title, rows, card, f"{remark} {note}".strip(), scale, (2.75, 2.5), linked=True)


def _contour_panel(x: Axis, y: Axis, plane: xr.DataArray, title: str) -> Panel:
    z = plane.values
    alpha, beta = plane["alpha"].values, plane["beta"].values
    marks: list[Mark] = [Contours(alpha, beta, z)]
    i, j = np.nonzero(~np.isfinite(z))
    if i.size:
        marks.append(Points(alpha[j], beta[i], MUTED, "hole", "not measured", 3.0))
    if np.isfinite(z).any():
        k, m = np.unravel_index(np.nanargmin(z), z.shape)
        marks.append(Points(alpha[[m]], beta[[k]], PAPER, "circle", "", 5.0, hollow=True))
    marks.append(Points(np.zeros(1), np.zeros(1), PAPER, "plus", "", 7.0))
    centre = _centre(plane)
    if np.isfinite(centre):
        marks.append(Text(0.0, 0.0, prep.short(centre), PAPER, "left", (5.0, 5.0), 7.0))
    return Panel(title, x, y, tuple(marks))


def plot_surface_3d(
    surface: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    pair: int | None = None,
    relative: bool = False,
    variable: str = "loss",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw the loss on a plane as a surface in space, arranged as the contours and on one scale.

    Parameters
    ----------
    surface, lanes, pair, relative, variable, backend
        As for :func:`plot_contours`.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Cells with a corner that was not measured are left open.
    """
    data = prep.as_mapping(surface, variable)
    planes = _planes(data, lanes, pair, relative, variable)
    scale = prep.colour_scale(planes.values(), _value_label(data, relative))

    def make(x: Axis, y: Axis, plane: xr.DataArray, title: str) -> Panel:
        z = Axis("", limits=(scale.low, scale.high))
        mark = Relief(plane["alpha"].values, plane["beta"].values, plane.values)
        return Panel(title, Axis("α", limits=x.limits), Axis("β", limits=y.limits), (mark,), z)

    rows = _rows(data, planes, make)
    note = f"{_which_pair(data, pair)} Axes: {_axis_label(data, 'alpha')}; {_axis_label(data, 'beta')}."
    picture = Picture(
        "Loss surface over a plane through the weights", rows, prep.scale_card(data), note, scale, (2.9, 2.7)
    )
    return render(picture, backend)


def plot_eigen_plane(
    surface_eigen: prep.Results, *, lanes: str | Sequence[str] | None = None, backend: Backend = "matplotlib"
) -> Any:
    """Draw contours on the plane of a lane's extreme curvature directions, v_min and v_max.

    Parameters
    ----------
    surface_eigen
        A ``surface_eigen`` Dataset (attribute ``lane``: whose directions they are), or ``{optimizer: Dataset}``.
    lanes
        The lanes whose loss is drawn; by default the named lane, then head, tail and all: what leaving the saddle
        does to them.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
    """
    data = prep.as_mapping(surface_eigen, "loss")
    if lanes is None:
        known = prep.all_lanes(data.values())
        wanted = [str(next(iter(data.values())).attrs.get("lane", "")), "head", "tail", "all"]
        lanes = [lane for lane in dict.fromkeys(wanted) if lane in known][:3] or known[:3]
    named = {
        name: dataset.assign_attrs(
            alpha_label=dataset.attrs.get("alpha_label", f"along v_min of {dataset.attrs.get('lane', 'the lane')}"),
            beta_label=dataset.attrs.get("beta_label", f"along v_max of {dataset.attrs.get('lane', 'the lane')}"),
        )
        for name, dataset in data.items()
    }
    owner = " / ".join(dict.fromkeys(str(d.attrs["lane"]) for d in data.values() if d.attrs.get("lane")))
    title = f"Loss on the plane of extreme curvature of {owner or 'one lane'}"
    planes = _planes(named, lanes, None, False, "loss")
    return render(_contour_picture(named, planes, title, _value_label(named, False), ""), backend)


def _masked(dataset: xr.Dataset, variable: str) -> xr.DataArray:
    """Return the values with everything that is not done or not finite as NaN."""
    values = dataset[variable]
    if "done" in dataset:
        values = values.where(dataset["done"])
    return values.where(np.isfinite(values))


def _planes(
    data: Mapping[str, xr.Dataset], lanes: str | Sequence[str] | None, pair: int | None, relative: bool, variable: str
) -> dict[tuple[str, str], xr.DataArray]:
    chosen = prep.choose_lanes(data, lanes, prep.GROUP_LANES)
    planes = {}
    for name, dataset in data.items():
        values = _masked(dataset, variable)
        if "pair" in values.dims:
            known = values["pair"].values.tolist()
            if pair is not None and pair not in known:
                raise unknown_name("direction pair", str(pair), map(str, known))
            values = values.sel(pair=known[0] if pair is None else pair)
        for lane in chosen:
            if lane in values["lane"].values:
                plane = values.sel(lane=lane).transpose("beta", "alpha")
                planes[name, lane] = plane - _centre(plane, required=True) if relative else plane
    if not any(np.isfinite(plane).any() for plane in planes.values()):
        raise LandscapeError("expected at least one finished grid point on the plane, got none: resume the measurement")
    return planes


def _centre(plane: xr.DataArray, *, required: bool = False) -> float:
    """Return the value at the weights, NaN where the grid does not hold that point and it is not required."""
    at = [int(np.argmin(np.abs(plane[axis].values))) for axis in ("beta", "alpha")]
    exact = all(abs(float(plane[axis].values[k])) < 1e-9 for axis, k in zip(("beta", "alpha"), at))
    value = float(plane.values[at[0], at[1]]) if exact else float("nan")
    if required and not np.isfinite(value):
        raise LandscapeError(
            "expected the weights (0, 0) among the finished grid points, got none: use an odd number of points"
        )
    return value


def _rows(
    data: Mapping[str, xr.Dataset], planes: Mapping[tuple[str, str], xr.DataArray], make: Callable[..., Panel]
) -> tuple[tuple[Panel | None, ...], ...]:
    lanes = list(dict.fromkeys(lane for _, lane in planes))
    x_limits = prep.finite_range([plane["alpha"] for plane in planes.values()])
    y_limits = prep.finite_range([plane["beta"] for plane in planes.values()])
    widest = 4 if len(data) == 1 else len(lanes)
    rows: list[tuple[Panel | None, ...]] = []
    for name, dataset in data.items():
        for start in range(0, len(lanes), widest):
            part = lanes[start : start + widest]
            last = name == list(data)[-1] and start + widest >= len(lanes)
            row: list[Panel | None] = []
            for lane in part:
                if (name, lane) not in planes:
                    row.append(None)
                    continue
                x = Axis(_axis_label(data, "alpha") if last else "", limits=x_limits)
                y = Axis(_axis_label(data, "beta") if lane == part[0] else "", limits=y_limits)
                title = " · ".join(text for text in (name, prep.lane_label(dataset, lane)) if text)
                row.append(make(x, y, planes[name, lane], title))
            rows.append(tuple(row))
    return tuple(rows)


def _objective(dataset: xr.Dataset) -> str:
    objective = str(dataset.attrs.get("objective", ""))
    return f"loss ({objective})" if objective and len(objective) <= 24 else "loss"


def _value_label(data: Mapping[str, xr.Dataset], relative: bool) -> str:
    label = _objective(next(iter(data.values())))
    return f"{label} minus its value at the weights" if relative else label


def _axis_label(data: Mapping[str, xr.Dataset], axis: str) -> str:
    first = next(iter(data.values()))
    units = str(first[axis].attrs.get("units", ""))
    default = {"alpha": "α, along direction 1", "beta": "β, along direction 2"}[axis]
    if "beta" not in first.dims:
        default = "α, along the direction"
    label = str(first.attrs.get(f"{axis}_label", default))
    return f"{label} [{units}]" if units else label


def _which_pair(data: Mapping[str, xr.Dataset], pair: int | None) -> str:
    first = next(iter(data.values()))
    if first.sizes.get("pair", 1) < 2:
        return ""
    shown = int(first["pair"].values[0]) if pair is None else pair
    return f"Direction pair {shown} of {first.sizes['pair']} (numbered from 0)."
