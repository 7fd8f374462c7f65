"""Figures of the spectral density: head against tail, lane by lane, and the map over all classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import xarray as xr

from landscape.errors import unknown_name
from landscape.figures import preparation as prep
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import (
    Array,
    Axis,
    Backend,
    ColourScale,
    Heat,
    Line,
    Mark,
    Panel,
    Picture,
    Points,
    Stems,
    Text,
    symlog,
    symlog_inverse,
)
from landscape.figures.style import Look, optimizer_looks

_FLOOR = 1e-6
_DECADES = 1.7  # above 1: a lone kernel reaches 1 / (0.06 sqrt(2 pi)) = 6.6
_WIDTH = 0.06
_MAX_SMALL_MULTIPLES = 16
_EIGENVALUE = "eigenvalue λ (linear within ±{within:g}, then log)"


def plot_spectrum(
    spectrum: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    by: Literal["optimizer", "lane"] = "optimizer",
    linear_within: float = 1.0,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw the spectral density of several lanes, with raw Ritz nodes and both extreme eigenvalues.

    Parameters
    ----------
    spectrum
        A ``spectrum`` Dataset, or ``{optimizer: Dataset}``, drawn on shared axes.
    lanes
        Lane names, ``"classes"``, ``"groups"`` or ``"every"``; head and tail by default.
    by
        ``"optimizer"``: a panel per optimizer with all lanes in it; ``"lane"``: a panel per lane with all optimizers
        in it.
    linear_within
        Half-width of the linear part of the eigenvalue axis.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        The curve is a Gaussian smoothing in the drawn coordinate (stated on the figure), the stems are the raw nodes.

    Raises
    ------
    LandscapeError
        If a lane is unknown or there is nothing to draw.
    """
    data = prep.as_mapping(spectrum, "ritz_value")
    chosen = prep.choose_lanes(data, lanes, ("head", "tail"))
    note = (
        f"Curves: Ritz nodes smoothed by a Gaussian of width {_WIDTH:g} in the drawn coordinate, density per "
        f"unit of that axis, "
        "for the eye only. Stems (up to three curves): raw nodes, height = raw weight. "
        "Bars on top: λmin to λmax ± error."
    )
    if by == "lane" and len(chosen) > _MAX_SMALL_MULTIPLES:
        picked = np.unique(np.linspace(0, len(chosen) - 1, _MAX_SMALL_MULTIPLES).round().astype(int))
        note += f" {len(picked)} of {len(chosen)} lanes shown, evenly spaced from head to tail."
        chosen = [chosen[k] for k in picked]
    shared = {name: d.sel(lane=[lane for lane in chosen if lane in prep.all_lanes([d])]) for name, d in data.items()}
    limits = prep.finite_range([d["ritz_value"] for d in shared.values()])
    looks = optimizer_looks(list(data)) if by == "lane" and len(data) > 1 else prep.lane_looks(data, chosen)
    if by == "optimizer":
        groups = {name: [(lane, name, looks[lane]) for lane in chosen] for name in data}
    elif by == "lane":
        if len(data) == 1:
            looks = {lane: replace(look, dash="solid") for lane, look in looks.items()}
        groups = {lane: [(lane, name, looks[name if len(data) > 1 else lane]) for name in data] for lane in chosen}
    else:
        raise unknown_name("arrangement", by, ["optimizer", "lane"])
    panels = [
        _density_panel(title, members, data, limits=limits, linear_within=linear_within, by=by)
        for title, members in groups.items()
    ]
    rows, columns = prep.grid_shape(len(panels), widest=3 if by == "optimizer" else 4)
    size = (4.4, 3.3) if by == "optimizer" else (2.75, 2.15)
    picture = Picture(
        "Spectral density of the Hessian" + ("" if by == "optimizer" else ", lane by lane"),
        arrange(
            panels, rows, columns, _EIGENVALUE.format(within=linear_within) if by == "optimizer" else "eigenvalue λ"
        ),
        prep.scale_card(data, lanes=chosen),
        note,
        panel_size=size,
        linked=True,
    )
    return render(picture, backend)


def _density_panel(
    title: str,
    members: Sequence[tuple[str, str, Look]],
    data: Mapping[str, xr.Dataset],
    *,
    limits: tuple[float, float],
    linear_within: float,
    by: str,
) -> Panel:
    members = [member for member in members if member[0] in prep.all_lanes([data[member[1]]])]
    few = len(members) <= 3
    spacing = 1.35 if few else 0.5
    edges = symlog(np.array(limits), linear_within)
    edge_low, edge_high = symlog_inverse(np.array([edges[0] - 0.45, edges[1] + 0.45]), linear_within)
    marks: list[Mark] = []
    for k, (lane, name, look) in enumerate(members):
        lane_data = data[name].sel(lane=lane)
        values, weights = lane_data["ritz_value"].values, lane_data["ritz_weight"].values
        if not np.isfinite(values).any():
            continue
        grid, density = prep.smooth_density(values, weights, width=_WIDTH, linear_within=linear_within, limits=limits)
        curve = np.maximum(density, _FLOOR / 10)
        label = name if len(data) > 1 else ""
        if by == "optimizer":
            label = prep.lane_label(data[name], lane) if len(data) == 1 else lane
        kept = np.isfinite(values) & np.isfinite(weights)
        probes = int(kept.any(axis=-1).sum())
        if few:
            marks.append(Stems(values[kept], weights[kept] / probes, _FLOOR, look.colour, alpha=0.3))
        marks.append(Line(symlog_inverse(grid, linear_within), curve, look.colour, label, look.dash))
        height = 10.0 ** (_DECADES + 0.35 + spacing * (len(members) - 1 - k))
        marks.extend(_range_bar(lane_data, height, look, lane if by == "optimizer" else "", (edge_low, edge_high), few))
    y = Axis(
        "density per unit of the axis", "log", (_FLOOR, 10.0 ** (_DECADES + 0.25 + spacing * max(len(members), 1)))
    )
    if title and by == "lane":
        title = prep.lane_label(data[members[0][1]], title)
    return Panel(title, Axis("", "symlog", (float(edge_low), float(edge_high)), linear_within), y, tuple(marks))


def _range_bar(
    lane_data: xr.Dataset, height: float, look: Look, prefix: str, edges: tuple[float, float], few: bool
) -> list[Mark]:
    low, high = float(lane_data["lambda_min"]), float(lane_data["lambda_max"])
    marks: list[Mark] = [
        Line(np.array([low, high]), np.array([height, height]), look.colour, "", look.dash, look.marker, 1.0),
    ]
    marks += [
        Line(np.array([x, x]), np.array([_FLOOR, 10.0**_DECADES]), look.colour, "", "dot", "", 0.7, 0.6)
        for x in (low, high)
    ]
    if few:
        lead = f"{prefix}: " if prefix else ""
        size = 6.6 if prefix else 5.9
        for x, align, text in (
            (edges[0], "left", f"{lead}λmin {prep.end_of_spectrum(lane_data, 'lambda_min')}"),
            (edges[1], "right", f"λmax {prep.end_of_spectrum(lane_data, 'lambda_max')}"),
        ):
            shift = 3.0 if align == "left" else -3.0
            marks.append(Text(x, height, text, look.colour, align, (shift, 7.0), size))  # type: ignore[arg-type]
    return marks


def plot_spectrum_map(
    spectrum: prep.Results,
    *,
    lanes: str | Sequence[str] | None = "classes",
    linear_within: float = 1.0,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw the spectral density of every class as one heat map, classes from head to tail.

    Parameters
    ----------
    spectrum
        A ``spectrum`` Dataset, or ``{optimizer: Dataset}``: panels side by side with one colour scale.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``.
    linear_within
        Half-width of the linear part of the eigenvalue axis.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        A row per lane; the extreme eigenvalues are marked.
    """
    data = prep.as_mapping(spectrum, "ritz_value")
    chosen = prep.choose_lanes(data, lanes, ())
    limits = prep.finite_range([d["ritz_value"] for d in data.values()])
    panels: list[Panel] = []
    highest = _FLOOR
    rows_at = np.arange(len(chosen), dtype=float)
    first = next(iter(data.values()))
    names = prep.thinned([prep.lane_label(first, lane) for lane in chosen], 34)
    edges = symlog(np.array(limits), linear_within)
    bounds = tuple(symlog_inverse(np.array([edges[0] - 0.33, edges[1] + 0.33]), linear_within).tolist())
    for name, dataset in data.items():
        grid, z = _density_rows(dataset, chosen, limits, linear_within)
        highest = max(highest, prep.finite_range([z])[1])
        known = dataset.reindex(lane=chosen) if list(dataset["lane"].values) != chosen else dataset
        marks: tuple[Mark, ...] = (
            Heat(symlog_inverse(grid, linear_within), rows_at, z),
            Points(known["lambda_min"].values, rows_at, "#FF6B4A", "triangle", "λmin", 4.0),
            Points(known["lambda_max"].values, rows_at, "#F2B134", "square", "λmax", 3.6),
        )
        y = Axis("" if panels else "class (examples)", "linear", (len(chosen) - 0.5, -0.5), categories=names)
        panels.append(Panel(name, Axis("", "symlog", bounds, linear_within), y, marks))
    rows_count, columns = prep.grid_shape(len(panels), widest=3)
    scale = ColourScale(
        "density per unit of the axis",
        1e-5,
        highest,
        True,
        (),
        tuple(10.0**k for k in range(-5, 3) if 10.0**k <= highest),
    )
    note = (
        f"Ritz nodes smoothed by a Gaussian of width {_WIDTH:g} in the drawn coordinate, for the eye only; "
        f"darkest: below 1e-5."
    )
    width = 5.6 if len(panels) == 1 else 3.6
    picture = Picture(
        "Spectral density of every class, head to tail",
        arrange(
            panels, rows_count, columns, "eigenvalue λ" if columns > 1 else _EIGENVALUE.format(within=linear_within)
        ),
        prep.scale_card(data),
        note,
        scale,
        (width, max(2.0, min(0.2 * len(chosen), 6.0) + 0.7)),
        linked=True,
    )
    return render(picture, backend)


def _density_rows(
    dataset: xr.Dataset, lanes: Sequence[str], limits: tuple[float, float], linear_within: float
) -> tuple[Array, Array]:
    """Return the grid and a row of density per lane, NaN for a lane that the results lack."""
    grid, _ = prep.smooth_density(
        np.array([limits]), np.ones((1, 2)) / 2, width=_WIDTH, linear_within=linear_within, limits=limits
    )
    z = np.full((len(lanes), grid.size), np.nan)
    for k, lane in enumerate(lanes):
        if lane in prep.all_lanes([dataset]):
            values, weights = (dataset[name].sel(lane=lane).values for name in ("ritz_value", "ritz_weight"))
            if np.isfinite(values).any():
                _, density = prep.smooth_density(
                    values, weights, width=_WIDTH, linear_within=linear_within, limits=limits
                )
                z[k] = np.maximum(density, 1e-5)
    return grid, z
