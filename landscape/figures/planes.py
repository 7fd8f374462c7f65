"""Figures of the loss on planes through the weights; what was not measured stays a hole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import xarray as xr

from landscape.figures import preparation as prep
from landscape.figures import quantities as of
from landscape.figures.contours import (
    contour_picture,
    error_picture,
    lanes_of,
    panel_rows,
    planes_of,
    surface_scale,
    which_pair,
)
from landscape.figures.drawing import render
from landscape.figures.picture import Axis, Backend, Panel, Picture, Relief


def plot_contours(
    surface: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    pair: int | None = None,
    relative: bool = False,
    variable: str = "loss",
    errors: bool | None = False,
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
        ``"loss"``, ``"own_loss"``, ``"error"`` or ``"margin"``, also with the prefix of a view, ``"held_out_loss"``.
    errors
        A row per lane; beside each the paired standard error over images of a change from the weights
        (``increase_stderr``), and with several pairs their standard deviation, each on a colour scale of its own. What
        was not measured is left out. None: where the picture is of one result.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Grid points that are not done or not finite are marked and left open. Only where the result itself says that it
        was interpolated (``interpolated``) are such values drawn; the evaluated points are then dotted, and the note
        gives their number and the checked error.

    Raises
    ------
    LandscapeError
        If the pair or a lane is unknown, or there is nothing to draw.
    """
    data = prep.as_mapping(surface, variable, "alpha", "beta")
    planes = planes_of(data, lanes, pair, relative, variable)
    title = f"{of.noun(variable)} on a plane through the weights" + (", relative to the weights" if relative else "")
    label = of.meaning(next(iter(data.values())), variable, relative=relative)
    build = error_picture if _wants_errors(data, errors) else contour_picture
    return render(build(data, planes, title, label, variable=variable, pair=pair), backend)


def plot_eigen_plane(
    surface_eigen: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    variable: str = "loss",
    errors: bool | None = False,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw contours on the plane of a lane's extreme curvature directions, v_min and v_max.

    Parameters
    ----------
    surface_eigen
        A ``surface_eigen`` Dataset (attribute ``lane``: whose directions they are), or ``{optimizer: Dataset}``.
    lanes
        The lanes whose loss is drawn; by default the named lane, then head, tail and all: what leaving the saddle
        does to them.
    variable, errors, backend
        As for :func:`plot_contours`.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
    """
    data = prep.as_mapping(surface_eigen, variable, "alpha", "beta")
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
    title = f"{of.noun(variable)} on the plane of extreme curvature of {owner or 'one lane'}"
    planes = planes_of(named, lanes, None, False, variable)
    label = of.meaning(next(iter(named.values())), variable)
    build = error_picture if _wants_errors(data, errors) else contour_picture
    return render(build(named, planes, title, label, variable=variable, pair=None), backend)


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
    data = prep.as_mapping(surface, variable, "alpha", "beta")
    first = next(iter(data.values()))
    planes = planes_of(data, lanes, pair, relative, variable)
    scale = surface_scale(planes.values(), of.meaning(first, variable, relative=relative), variable)

    def make(x: Axis, y: Axis, key: tuple[str, str], title: str) -> Panel:
        plane = planes[key]
        z = Axis("", limits=(scale.low, scale.high))
        mark = Relief(plane["alpha"].values, plane["beta"].values, plane.values)
        return Panel(title, Axis("α", limits=x.limits), Axis("β", limits=y.limits), (mark,), z)

    rows = panel_rows(data, planes, make)
    chosen = lanes_of(planes)
    notes = [
        f"{which_pair(data, pair)} Axes: {of.axis_label(first, 'alpha')}; {of.axis_label(first, 'beta')}.",
        of.interpolation_note(data.values(), chosen, pair),
        of.error_note(data, variable, chosen),
    ]
    title = f"{of.noun(variable)} surface over a plane through the weights"
    card = prep.scale_card(data, lanes=chosen)
    note = " ".join(text.strip() for text in notes if text)
    return render(Picture(title, rows, card, note, scale, (2.9, 2.7)), backend)


def _wants_errors(data: Mapping[str, xr.Dataset], errors: bool | None) -> bool:
    return len(data) == 1 if errors is None else errors
