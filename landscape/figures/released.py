"""The released figure of per-class spectra, redrawn from the released settings, beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.figures import preparation as prep
from landscape.figures.drawing import arrange, render
from landscape.figures.picture import (
    Array,
    Axis,
    Backend,
    Line,
    Mark,
    Panel,
    Picture,
    Stems,
    Text,
    symlog,
    symlog_inverse,
)
from landscape.figures.style import INK, SEQUENCE

# The released smoothing: points of the grid, its margin, and the Gaussian's variance per unit of range.
_NUM_POINTS = 10_000
_MARGIN = 0.01
_VARIANCE = 1e-5
_OFFSET = 1e-7  # added before the logarithm
_TOP = 2e1
_LINES = 1e2  # room above the curves for each side's two lines of words
_THEIRS, _OURS = SEQUENCE[1], SEQUENCE[0]
_MAX_PANELS = 16


def released_density(ritz_value: Array, ritz_weight: Array) -> tuple[Array, Array]:
    r"""Smooth Ritz nodes as the released analysis does, for its figure only.

    .. math:: p(x) \propto \frac1R \sum_r \sum_j w_{rj} N(x; \lambda_{rj}, \sigma^2), \qquad
              \sigma^2 = 10^{-5} \max(1, x_\max - x_\min)

    on 10,000 points from :math:`x_\min`, the mean over runs of the smallest node minus 0.01, to :math:`x_\max`, that
    of the largest plus 0.01, divided by its Riemann sum.

    Parameters
    ----------
    ritz_value, ritz_weight
        (R, S) nodes and weights of R runs; NaN where a run is shorter.

    Returns
    -------
    tuple of numpy.ndarray
        Grid and density, each (10000,); the density sums to 1 over the grid times its spacing.

    Raises
    ------
    LandscapeError
        If there is no finite node.

    Notes
    -----
    The kernel is never narrower than 0.003, so a narrower spectrum is all kernel; on a range beyond 1,000 the grid is
    coarser than the kernel and nodes between two points lose their mass. Statistics belong to the raw nodes.
    """
    values, weights = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (ritz_value, ritz_weight))
    kept = np.isfinite(values) & np.isfinite(weights)
    runs = kept.any(axis=1)
    if not runs.any():
        raise LandscapeError("expected Ritz values and weights, got only missing ones: measure the spectrum first")
    values, weights, kept = values[runs], weights[runs], kept[runs]
    low = np.mean([row[k].min() for row, k in zip(values, kept)]) - _MARGIN
    high = np.mean([row[k].max() for row, k in zip(values, kept)]) + _MARGIN
    grid = np.linspace(low, high, _NUM_POINTS)
    variance = _VARIANCE * max(1.0, high - low)
    density = np.zeros(_NUM_POINTS)
    for node, weight in zip(values[kept], weights[kept]):
        density += weight * np.exp(-((grid - node) ** 2) / (2 * variance))
    total = density.sum() * (grid[1] - grid[0])
    return grid, density / total if total > 0 else density


def plot_released_protocol(
    theirs: xr.Dataset,
    ours: xr.Dataset,
    *,
    lanes: str | Sequence[str] | None = "classes",
    backend: Backend = "matplotlib",
) -> Any:
    """Draw the released figure of each class with our own measurement of the same class in it.

    Parameters
    ----------
    theirs
        A ``spectrum`` Dataset of the released settings (``landscape.spectrum.saddle_longtail``).
    ours
        A ``spectrum`` Dataset of :func:`landscape.measure_spectrum` on the same network.
    lanes
        Lane names, ``"classes"``, ``"groups"`` or ``"every"``; only lanes that both hold are drawn.
    backend
        ``"matplotlib"`` or ``"plotly"``.

    Returns
    -------
    matplotlib.figure.Figure or plotly.graph_objects.Figure
        A panel per lane: the released curve (density + 1e-7 over a symmetric logarithmic axis, linear within 1), our
        raw nodes as stems, and each side's smallest eigenvalue and verdict in words.

    Raises
    ------
    LandscapeError
        If a lane is unknown or no lane is in both.
    """
    data = {"released": prep.as_mapping(theirs, "ritz_value"), "ours": prep.as_mapping(ours, "ritz_value")}
    known = set(prep.all_lanes(data["ours"].values()))
    chosen = [lane for lane in prep.choose_lanes(data["released"], lanes, ()) if lane in known]
    if not chosen:
        raise LandscapeError("expected a lane that both results hold, got none: measure the same lanes with both")
    note = (
        "Orange: PyHessian with the released settings and smoothing. Blue stems: our raw nodes, height = raw weight; "
        f"± is the residual. The released data: augmentation {theirs.attrs.get('augmentation', 'not recorded')}."
    )
    if len(chosen) > _MAX_PANELS:
        picked = np.unique(np.linspace(0, len(chosen) - 1, _MAX_PANELS).round().astype(int))
        note += f" {len(picked)} of {len(chosen)} lanes shown, evenly spaced from head to tail."
        chosen = [chosen[k] for k in picked]
    limits = prep.finite_range([d["ritz_value"].sel(lane=chosen) for d in (theirs, ours)])
    edges = symlog(np.array(limits)) + np.array([-0.4, 0.4])
    low, high = symlog_inverse(edges).tolist()
    panels = [_panel(lane, theirs.sel(lane=lane), ours.sel(lane=lane), ours, (low, high)) for lane in chosen]
    rows, columns = prep.grid_shape(len(panels), widest=4)
    picture = Picture(
        "The released per-class spectra, beside ours",
        arrange(panels, rows, columns, "eigenvalue λ (linear within ±1, then log)"),
        prep.scale_card({"ours": ours}, lanes=chosen),
        note,
        panel_size=(3.5, 2.5),
        linked=True,
    )
    return render(picture, backend)


def _panel(lane: str, theirs: xr.Dataset, ours: xr.Dataset, all_ours: xr.Dataset, edges: tuple[float, float]) -> Panel:
    grid, density = released_density(theirs["ritz_value"].values, theirs["ritz_weight"].values)
    values, weights = ours["ritz_value"].values, ours["ritz_weight"].values
    kept = np.isfinite(values) & np.isfinite(weights)
    probes = max(int(kept.any(axis=-1).sum()), 1)
    marks: list[Mark] = [
        Stems(values[kept], weights[kept] / probes + _OFFSET, _OFFSET, _OURS, "ours, raw nodes", alpha=0.5),
        Line(grid, density + _OFFSET, _THEIRS, "released settings", width=1.0),
    ]
    for k, (who, data, colour) in enumerate((("released", theirs, _THEIRS), ("ours", ours, _OURS))):
        smallest = float(data["lambda_min"])
        marks.append(Line(np.array([smallest] * 2), np.array([_OFFSET, _TOP]), colour, "", "dot", width=0.8))
        height = _TOP * _LINES ** (1.75 - k)
        for words, shift in ((f"{who}: λmin {prep.end_of_spectrum(data, 'lambda_min')}", 0.0), (_verdict(data), -8.0)):
            marks.append(Text(edges[0], height, words, INK, "left", (3.0, shift), 6.0))
    y = Axis("density + 1e−7", "log", (_OFFSET, _TOP * _LINES**2.1))
    return Panel(prep.lane_label(all_ours, lane), Axis("", "symlog", edges, 1.0), y, tuple(marks))


def _verdict(lane: xr.Dataset) -> str:
    """Return the verdict in words; where the operator itself is in doubt, that is the verdict."""
    evidence = str(lane["evidence"].item()) if "evidence" in lane else ""
    return evidence if evidence.startswith("none: ") else str(lane["verdict"].item())
