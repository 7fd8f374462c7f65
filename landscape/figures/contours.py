"""Panels of surfaces over planes: contours, the errors beside them, and their arrangement."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.figures import preparation as prep
from landscape.figures import quantities as of
from landscape.figures.picture import Axis, ColourScale, Contours, Mark, Panel, Picture, Points, Text
from landscape.figures.style import ERROR_MAP, INK, MUTED, PAPER, SPREAD_MAP
from landscape.figures.views import several

Planes: TypeAlias = Mapping[tuple[str, str], xr.DataArray]

_CONTOUR_NOTE = "+: the weights, with their value; ○: lowest grid point; grey with ×: not measured, left open."
_ERROR_MAPS = {"images": ("standard error", ERROR_MAP), "pairs": ("standard deviation", SPREAD_MAP)}
_MAP_TITLES = {"images": "standard error over images", "pairs": "spread over pairs"}
_MAP_NOTES = {
    "images": (
        "Standard error over images: of the change from the weights, the same images at both, classes as strata; 0 at the "
        "weights, open where a class has one image."
    ),
    "pairs": "Spread: standard deviation over the direction pairs at equal coordinates.",
}


def side_by_side(
    data: Mapping[str, xr.Dataset],
    by: Literal["policy", "split"],
    title: str,
    *,
    lanes: str | Sequence[str] | None,
    variable: str,
    other: bool,
) -> Picture:
    """Return a picture of planes with a row per optimizer and lane, a column per view, and one colour scale."""
    parts = several(data, by, other=other)
    flat = {(name, view): dataset for name, found in parts.items() for view, dataset in found.items()}
    names = {f"{name} · {view}".removeprefix(" · "): dataset for (name, view), dataset in flat.items()}
    planes = planes_of(names, lanes, None, False, variable)
    label = of.meaning(next(iter(names.values())), variable)
    scale = surface_scale(planes.values(), label, variable)
    chosen = lanes_of(planes)
    x_limits, y_limits = _limits(planes)
    first = next(iter(names.values()))
    keys = [
        [(f"{name} · {view}".removeprefix(" · "), lane) for view in parts[name]] for name in parts for lane in chosen
    ]
    rows = []
    for i, row in enumerate(keys):
        panels: list[Panel | None] = []
        for j, key in enumerate(row):
            x = Axis(of.axis_label(first, "alpha") if i == len(keys) - 1 else "", limits=x_limits)
            y = Axis(of.axis_label(first, "beta") if j == 0 else "", limits=y_limits)
            heading = f"{key[0]} · {prep.lane_label(names[key[0]], key[1])}"
            panels.append(_contour_panel(x, y, planes[key], heading, names[key[0]]) if key in planes else None)
        rows.append(tuple(panels))
    notes = [which_pair(names, None), _CONTOUR_NOTE, of.interpolation_note(names.values(), chosen)]
    notes.append(of.error_note(names, variable, chosen))
    note = " ".join(text for text in notes if text)
    return Picture(title, tuple(rows), prep.scale_card(names, lanes=chosen), note, scale, (2.75, 2.3), linked=True)


def contour_picture(
    data: Mapping[str, xr.Dataset], planes: Planes, title: str, label: str, *, variable: str, pair: int | None
) -> Picture:
    """Return a picture of planes: lanes side by side, optimizers below each other, one colour scale."""
    scale = surface_scale(planes.values(), label, variable)
    chosen = lanes_of(planes)

    def make(x: Axis, y: Axis, key: tuple[str, str], heading: str) -> Panel:
        return _contour_panel(x, y, planes[key], heading, data[key[0]], pair)

    rows = panel_rows(data, planes, make)
    notes = [which_pair(data, pair), _CONTOUR_NOTE, of.interpolation_note(data.values(), chosen, pair)]
    notes.append(of.error_note(data, variable, chosen))
    note = " ".join(text for text in notes if text)
    return Picture(title, rows, prep.scale_card(data, lanes=chosen), note, scale, (2.75, 2.5), linked=True)


def error_picture(
    data: Mapping[str, xr.Dataset], planes: Planes, title: str, label: str, *, variable: str, pair: int | None
) -> Picture:
    """Return a picture with a row per optimizer and lane: the surface, its error over images, its spread over pairs."""
    chosen = lanes_of(planes)
    x_limits, y_limits = _limits(planes)
    maps = {key: _error_maps(data[key[0]], key[1], variable, pair) for key in planes}
    kinds = [kind for kind in _ERROR_MAPS if any(kind in found for found in maps.values())]
    if not kinds:
        picture = contour_picture(data, planes, title, label, variable=variable, pair=pair)
        return replace(picture, note=f"{picture.note} No errors were recorded.")
    scales = {
        kind: prep.size_scale([found[kind] for found in maps.values() if kind in found], text, colour_map)
        for kind, (text, colour_map) in _ERROR_MAPS.items()
        if kind in kinds
    }
    own = surface_scale(planes.values(), label, variable)
    rows = []
    first = next(iter(data.values()))
    for i, key in enumerate(planes):
        x = Axis(of.axis_label(first, "alpha") if i == len(planes) - 1 else "", limits=x_limits)
        y = Axis(of.axis_label(first, "beta"), limits=y_limits)
        heading = " · ".join(text for text in (key[0], prep.lane_label(data[key[0]], key[1])) if text)
        panel = _contour_panel(x, y, planes[key], heading, data[key[0]], pair)
        row: list[Panel | None] = [replace(panel, colours=own)]
        for kind in kinds:
            bare = replace(y, label="")
            found = maps[key].get(kind)
            row.append(None if found is None else _map_panel(x, bare, found, _MAP_TITLES[kind], scales[kind]))
        rows.append(tuple(row))
    notes = [which_pair(data, pair), _CONTOUR_NOTE, of.interpolation_note(data.values(), chosen, pair)]
    notes += [_MAP_NOTES[kind] for kind in kinds]
    card = prep.scale_card(data, lanes=chosen)
    return Picture(title, tuple(rows), card, " ".join(text for text in notes if text), own, (2.5, 2.3), linked=True)


def _error_maps(dataset: xr.Dataset, lane: str, variable: str, pair: int | None) -> dict[str, xr.DataArray]:
    """Return (beta, alpha) maps of what is recorded: the error over images, the spread over direction pairs."""
    found = {}
    name = of.stderr_name(dataset, variable)
    if name:
        values = _of_pair(of.masked(dataset, name), pair).sel(lane=lane).transpose("beta", "alpha")
        if bool(np.isfinite(values).any()):
            found["images"] = values
    values = of.masked(dataset, variable).sel(lane=lane)
    if values.sizes.get("pair", 1) > 1:
        found["pairs"] = values.std("pair", ddof=1, skipna=False).transpose("beta", "alpha")
    return found


def _map_panel(x: Axis, y: Axis, values: xr.DataArray, title: str, scale: ColourScale) -> Panel:
    marks: tuple[Mark, ...] = (
        Contours(values["alpha"].values, values["beta"].values, values.values),
        Points(np.zeros(1), np.zeros(1), PAPER, "plus", "", 6.0),
    )
    return Panel(title, x, y, marks, colours=scale)


def _contour_panel(
    x: Axis, y: Axis, plane: xr.DataArray, title: str, dataset: xr.Dataset, pair: int | None = None
) -> Panel:
    z = plane.values
    alpha, beta = plane["alpha"].values, plane["beta"].values
    marks: list[Mark] = [Contours(alpha, beta, z)]
    kept = of.evaluated(dataset, pair)
    if kept is not None:
        i, j = np.nonzero(kept & np.isfinite(z))
        marks.append(Points(alpha[j], beta[i], INK, "dot", "", 1.8, 0.8))
    i, j = np.nonzero(~np.isfinite(z))
    if i.size:
        marks.append(Points(alpha[j], beta[i], MUTED, "hole", "not measured", 3.0))
    assert x.limits is not None
    assert y.limits is not None
    marks += of.path_marks(of.marked_points(dataset), (x.limits, y.limits))
    if np.isfinite(z).any():
        k, m = np.unravel_index(np.nanargmin(z), z.shape)
        marks.append(Points(alpha[[m]], beta[[k]], PAPER, "circle", "", 5.0, hollow=True))
    marks.append(Points(np.zeros(1), np.zeros(1), PAPER, "plus", "", 7.0))
    centre = prep.centre_of(plane)
    if centre is not None and np.isfinite(centre):
        marks.append(Text(0.0, 0.0, prep.short(float(centre)), PAPER, "left", (5.0, 5.0), 7.0))
    return Panel(title, x, y, tuple(marks))


def planes_of(
    data: Mapping[str, xr.Dataset], lanes: str | Sequence[str] | None, pair: int | None, relative: bool, variable: str
) -> dict[tuple[str, str], xr.DataArray]:
    """Return {(optimizer, lane): values (beta, alpha)} of one direction pair, with NaN where nothing was measured.

    Raises
    ------
    LandscapeError
        If the pair or a lane is unknown, or no point is finished.
    """
    chosen = prep.choose_lanes(data, lanes, prep.GROUP_LANES)
    planes = {}
    for name, dataset in data.items():
        values = _of_pair(of.masked(dataset, variable), pair)
        for lane in chosen:
            if lane in values["lane"].values:
                plane = values.sel(lane=lane).transpose("beta", "alpha")
                planes[name, lane] = of.minus_centre(plane) if relative else plane
    narrow = next((plane for plane in planes.values() if min(plane.shape) < 2), None)
    if narrow is not None:
        raise LandscapeError(f"expected a plane of at least 2 x 2 points, got {' x '.join(map(str, narrow.shape))}")
    if not any(np.isfinite(plane).any() for plane in planes.values()):
        raise LandscapeError("expected at least one finished grid point on the plane, got none: resume the measurement")
    return planes


def _of_pair(values: xr.DataArray, pair: int | None) -> xr.DataArray:
    if "pair" not in values.dims:
        return values
    known = values["pair"].values.tolist()
    if pair is not None and pair not in known:
        raise unknown_name("direction pair", str(pair), map(str, known))
    return values.sel(pair=known[0] if pair is None else pair)


def lanes_of(planes: Planes) -> list[str]:
    """Return the lanes of planes, each once."""
    return list(dict.fromkeys(lane for _, lane in planes))


def _limits(planes: Planes) -> tuple[tuple[float, float], tuple[float, float]]:
    alphas, betas = ([plane[axis] for plane in planes.values()] for axis in ("alpha", "beta"))
    return prep.finite_range(alphas), prep.finite_range(betas)


def surface_scale(values: Any, label: str, variable: str) -> ColourScale:
    """Return the colour scale of a variable: only losses may span decades."""
    return prep.colour_scale(values, label, log=None if of.is_loss(variable) else False)


def panel_rows(
    data: Mapping[str, xr.Dataset], planes: Planes, make: Callable[[Axis, Axis, tuple[str, str], str], Panel]
) -> tuple[tuple[Panel | None, ...], ...]:
    """Return rows of panels, a lane each, with shared limits and labels at the edges only."""
    lanes = lanes_of(planes)
    x_limits, y_limits = _limits(planes)
    first = next(iter(data.values()))
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
                x = Axis(of.axis_label(first, "alpha") if last else "", limits=x_limits)
                y = Axis(of.axis_label(first, "beta") if lane == part[0] else "", limits=y_limits)
                title = " · ".join(text for text in (name, prep.lane_label(dataset, lane)) if text)
                row.append(make(x, y, (name, lane), title))
            rows.append(tuple(row))
    return tuple(rows)


def which_pair(data: Mapping[str, xr.Dataset], pair: int | None) -> str:
    """Return which of several direction pairs is drawn; nothing where there is one."""
    first = next(iter(data.values()))
    if first.sizes.get("pair", 1) < 2:
        return ""
    shown = int(first["pair"].values[0]) if pair is None else pair
    return f"Direction pair {shown} of {first.sizes['pair']} (numbered from 0)."
