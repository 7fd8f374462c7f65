"""Figures of one surface under both BatchNorm policies, and on both splits, side by side on one scale."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from landscape.figures import contours, lines
from landscape.figures import preparation as prep
from landscape.figures import quantities as of
from landscape.figures.drawing import render
from landscape.figures.picture import Backend


def plot_batchnorm(
    surface: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    variable: str = "loss",
    held_out: bool = False,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw a surface with frozen BatchNorm statistics beside the same one with statistics recomputed at every point.

    Parameters
    ----------
    surface
        A ``surface`` or ``surface_line`` Dataset measured with both policies (``loss`` and ``recalibrated_loss``), or
        ``{optimizer: Dataset}``.
    lanes
        Lane names or ``"classes"``, ``"groups"``, ``"every"``; by default the groups, or all where there are none.
    variable
        ``"loss"``, ``"own_loss"``, ``"error"`` or ``"margin"``.
    held_out
        Draw both on the held-out split.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        Lines: a panel per policy with all lanes. Planes: a row per lane, a column per policy. One scale throughout.

    Raises
    ------
    LandscapeError
        If a surface was measured with one policy only.
    """
    return _drawn(surface, "policy", "frozen and recalibrated BatchNorm", lanes, variable, held_out, backend)


def plot_splits(
    surface: prep.Results,
    *,
    lanes: str | Sequence[str] | None = None,
    variable: str = "loss",
    recalibrated: bool = False,
    backend: Backend = "matplotlib",
) -> Any:
    """Draw a surface on the images it was trained on beside the same one on held-out images.

    Parameters
    ----------
    surface
        A ``surface`` or ``surface_line`` Dataset measured on two splits (``loss`` and ``held_out_loss``), or
        ``{optimizer: Dataset}``.
    lanes, variable, backend
        As for :func:`plot_batchnorm`.
    recalibrated
        Draw both with BatchNorm statistics recomputed at every point.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        As :func:`plot_batchnorm`, with the splits in the place of the policies.

    Raises
    ------
    LandscapeError
        If a surface was measured on one split only.
    """
    return _drawn(surface, "split", "training and held-out images", lanes, variable, recalibrated, backend)


def _drawn(
    surface: prep.Results,
    by: Literal["policy", "split"],
    what: str,
    lanes: str | Sequence[str] | None,
    variable: str,
    other: bool,
    backend: Backend,
) -> Any:
    data = prep.as_mapping(surface, variable, "alpha")
    is_plane = "beta" in next(iter(data.values())).dims
    where = "a plane" if is_plane else "lines"
    title = f"{of.noun(variable)} on {where} through the weights: {what}"
    draw = contours.side_by_side if is_plane else lines.side_by_side
    return render(draw(data, by, title, lanes=lanes, variable=variable, other=other), backend)
