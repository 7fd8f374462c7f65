"""From Datasets to picture data: one door to lanes, numbers and the card; the smoothed density, ranges, colour scales."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from landscape.errors import LandscapeError
from landscape.figures.card import centre_of, scale_card
from landscape.figures.lanes import (
    GROUP_LANES,
    Results,
    all_lanes,
    as_mapping,
    choose_lanes,
    class_lanes,
    lane_group,
    lane_kind,
    lane_label,
    lane_looks,
    num_examples,
    thinned,
)
from landscape.figures.numbers import end_of_spectrum, interval, log_ticks, precise, short, with_error
from landscape.figures.picture import Array, ColourScale, symlog, symlog_inverse, symlog_ticks

__all__ = [
    "GROUP_LANES",
    "Results",
    "all_lanes",
    "as_mapping",
    "centre_of",
    "choose_lanes",
    "class_lanes",
    "colour_scale",
    "diverging_scale",
    "end_of_spectrum",
    "finite_range",
    "grid_shape",
    "interval",
    "lane_group",
    "lane_kind",
    "lane_label",
    "lane_looks",
    "log_ticks",
    "num_examples",
    "padded",
    "precise",
    "scale_card",
    "short",
    "size_scale",
    "smooth_density",
    "thinned",
    "with_error",
]

# Falling values are blue, rising ones red: both ends are told apart by every kind of colour vision.
DIVERGING = "RdBu_r"


def smooth_density(
    values: Array,
    weights: Array,
    *,
    width: float = 0.06,
    linear_within: float = 1.0,
    limits: tuple[float, float] | None = None,
) -> tuple[Array, Array]:
    """Smooth raw Ritz nodes and weights into a picture of the spectral density on a symmetric logarithmic axis.

    ``p(u) = 1/P sum_p sum_j w_pj N(u; symlog(lambda_pj), width^2)``: a density per unit of the drawn axis, so that
    the area under the curve, as drawn, is the share of eigenvalues. For pictures only; statistics come from the raw
    nodes.

    Parameters
    ----------
    values, weights
        Ritz values and weights, (P, S), NaN where a probe stopped early; the weights of a probe sum to 1.
    width
        Standard deviation of the Gaussian in units of the drawn axis (decades beyond ``linear_within``).
    linear_within
        Half-width of the linear part of the axis.
    limits
        Range of eigenvalues to cover, so that several curves share one grid; the nodes' own range by default.

    Returns
    -------
    tuple of numpy.ndarray
        Positions u on the axis and density per unit of u, both (G,). The grid reaches 5 widths beyond the limits in
        steps of at most a third of a width, so no kernel is cut and the curve integrates to 1.
    """
    kept = np.isfinite(values) & np.isfinite(weights)
    if not kept.any():
        raise LandscapeError("expected Ritz values and weights, got only missing ones: measure the spectrum first")
    nodes = symlog(values[kept], linear_within)
    low, high = symlog(np.array(limits), linear_within) if limits is not None else (nodes.min(), nodes.max())
    low, high = min(low, nodes.min()) - 5.5 * width, max(high, nodes.max()) + 5.5 * width
    grid = np.linspace(low, high, int(np.ceil((high - low) / (width / 3.0))) + 1)
    probes = int(np.any(kept, axis=-1).sum())
    kernel = np.exp(-0.5 * ((grid[:, None] - nodes[None, :]) / width) ** 2) / (width * math.sqrt(2.0 * math.pi))
    return grid, kernel @ weights[kept] / probes


def finite_range(arrays: Iterable[Any]) -> tuple[float, float]:
    """Return the smallest and largest finite number; (0, 1) where there is none."""
    pieces = [np.asarray(array, dtype=np.float64).ravel() for array in arrays]
    joined = np.concatenate(pieces) if pieces else np.empty(0)
    joined = joined[np.isfinite(joined)]
    return (float(joined.min()), float(joined.max())) if joined.size else (0.0, 1.0)


def padded(low: float, high: float, share: float = 0.05, *, log: bool = False) -> tuple[float, float]:
    """Return the range with a margin of ``share`` of itself on each side."""
    if log:
        left, right = padded(math.log10(low), math.log10(high), share)
        return 10.0**left, 10.0**right
    margin = (high - low) * share or abs(high) * share or 0.5
    return low - margin, high + margin


def colour_scale(arrays: Iterable[Any], label: str, *, num_levels: int = 15, log: bool | None = None) -> ColourScale:
    """Return one colour scale for all arrays: logarithmic where they span more than a factor of 12, else linear."""
    low, high = finite_range(arrays)
    if log is None:
        log = low > 0 and high / low > 12.0
    if high <= low:
        low, high = low - 0.5, high + 0.5
        log = log and low > 0
    if log:
        levels = np.geomspace(low, high, num_levels)
        return ColourScale(label, low, high, True, tuple(levels.tolist()), tuple(log_ticks(low, high)))
    step = _nice_step((high - low) / (num_levels - 1))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    levels = np.round(np.arange(start, stop + 1) * step, 12)
    return ColourScale(label, float(levels[0]), float(levels[-1]), False, tuple(levels.tolist()))


def diverging_scale(arrays: Sequence[Any], label: str) -> ColourScale:
    """Return a scale around zero, blue below and red above, linear up to the lower quartile of the sizes."""
    sizes = np.abs(np.concatenate([np.asarray(z, dtype=np.float64).ravel() for z in arrays]))
    sizes = sizes[np.isfinite(sizes) & (sizes > 0)]
    most = float(sizes.max()) if sizes.size else 1.0
    within = 10.0 ** np.floor(np.log10(float(np.quantile(sizes, 0.25)))) if sizes.size else 1.0
    within = float(max(within, most * 1e-4))
    ticks = tuple(symlog_ticks(-most, most, within))
    return ColourScale(label, -most, most, ticks=ticks, linear_within=within, colour_map=DIVERGING)


def size_scale(arrays: Iterable[Any], label: str, colour_map: str, *, num_levels: int = 13) -> ColourScale:
    """Return a scale for sizes from zero on: linear up to a hundredth of the largest, logarithmic beyond."""
    high = finite_range(arrays)[1]
    high = high if high > 0 else 1.0
    within = float(10.0 ** np.floor(np.log10(high / 50)))
    levels = symlog_inverse(np.linspace(0.0, float(symlog(high, within)), num_levels), within)
    levels[-1] = high
    ticks = tuple(symlog_ticks(0.0, high, within))
    return ColourScale(label, 0.0, high, False, tuple(levels.tolist()), ticks, within, colour_map)


def grid_shape(count: int, *, widest: int = 4) -> tuple[int, int]:
    """Return (rows, columns) for ``count`` small multiples."""
    columns = min(widest, count) if count <= widest or count > 2 * widest else math.ceil(count / 2)
    return math.ceil(count / columns), columns


def _nice_step(raw: float) -> float:
    power = 10.0 ** math.floor(math.log10(raw))
    return next(factor * power for factor in (1.0, 2.0, 2.5, 5.0, 10.0) if factor * power >= raw * (1 - 1e-9))
