"""How far a surface depends on the images that happened to be drawn: paired, stratified intervals at every point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.special
import scipy.stats
import xarray as xr

from landscape.errors import LandscapeError, unknown_name
from landscape.randomness import numpy_stream
from landscape.risk import LaneChoice, Lanes
from landscape.spectrum.bootstrap import ROUNDING, held_to_student
from landscape.surface.cube import (
    Reference,
    Strata,
    cube_lanes,
    grid_dims,
    points_of,
    require_cube,
    require_reference,
    splits_of,
    strata_of,
)

Method = Literal["studentised", "percentile", "basic", "bca"]
METHODS: tuple[Method, ...] = ("studentised", "percentile", "basic", "bca")
Read = Callable[[slice], np.ndarray]  # points of the grid -> (points, N) float64
# Points of one matrix product, fixed so that a point's bits do not depend on how many others there are; fewer where the
# resamples of so many would not fit in this many bytes.
TILE_POINTS, TILE_BYTES = 32, 1 << 28


@dataclass(frozen=True)
class Intervals:
    """Means over images with their intervals over redrawn images, all (P, L) float64.

    Attributes
    ----------
    mean, low, high, stderr
        The weighted mean of class means, its interval and its standard error over images; NaN but for the mean where a
        class of the lane has one image.
    degrees
        Welch and Satterthwaite's degrees of freedom of ``stderr``.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray
    stderr: np.ndarray
    degrees: np.ndarray


@dataclass(frozen=True)
class Resampler:
    """The resamples of one set of images, drawn once and used for everything that is measured on these images.

    Attributes
    ----------
    strata
        The images by class.
    counts
        Per class (R, n_c) how often a resample holds each image; empty for classes of fewer than two images.
    level, method
        Confidence, and how an interval is made of the resamples.
    """

    strata: Strata
    counts: tuple[np.ndarray, ...]
    level: float
    method: Method

    @property
    def num_resamples(self) -> int:
        """Resamples of every class."""
        return max((len(c) for c in self.counts), default=0)


def resampler_of(
    cube: xr.Dataset, *, num_resamples: int = 1000, level: float = 0.95, seed: int = 0, method: Method = "studentised"
) -> Resampler:
    """Draw the resamples of a cube's images, within each class; streams are named by split and class.

    Two checkpoints measured on the same images therefore see the same resamples. Memory: two bytes per resample and
    image (25 MB for 1,000 resamples of 12,406 images).

    Raises
    ------
    LandscapeError
        For a level outside (0, 1), an unknown method, or fewer resamples than the level's quantiles need.
    """
    if not 0 < level < 1:
        raise LandscapeError(f"level: expected a probability between 0 and 1, got {level}")
    if method not in METHODS:
        raise unknown_name("bootstrap", method, METHODS)
    if num_resamples * (1 - level) < 2 - 1e-9:
        fewest = int(np.ceil(2 / (1 - level) - 1e-9))
        raise LandscapeError(
            f"num_resamples: expected at least {fewest} for an interval at {level:g}, got {num_resamples}"
        )
    strata = strata_of(cube)
    split = splits_of(cube)[0]
    counts = tuple(
        _resample_counts(numpy_stream(seed, f"surface/bootstrap/{split}/class={c}"), len(rows), num_resamples)
        for c, rows in enumerate(strata.rows)
    )
    return Resampler(strata, counts, level, method)


def _resample_counts(generator: np.random.Generator, size: int, num_resamples: int) -> np.ndarray:
    """Return (R, n): multinomial counts of n draws from n images; none for fewer than two images."""
    if size < 2:
        return np.zeros((0, size), dtype=np.uint16)
    counts = np.empty((num_resamples, size), dtype=np.uint16)
    block = max(1, (1 << 22) // size)
    for start in range(0, num_resamples, block):
        num = min(block, num_resamples - start)
        draws = generator.integers(size, size=(num, size)) + size * np.arange(num)[:, None]
        counts[start : start + num] = np.bincount(draws.ravel(), minlength=num * size).reshape(num, size)
    return counts


def image_intervals(read: Read, num_points: int, lanes: Lanes, resampler: Resampler) -> Intervals:
    r"""Return the means of per-image values over lanes, with stratified bootstrap intervals over images.

    With :math:`d_i` the value of image i, a lane's mean is :math:`m = \sum_c w_c \bar d_c`, its standard error
    :math:`s = (\sum_c w_c^2 s_c^2 / n_c)^{1/2}`. Resample r redraws every class on its own and has :math:`m_r` and
    :math:`s_r`, from two matrix products of the resample counts (R, n_c) with the values and their squares.

    Parameters
    ----------
    read
        Gives the values (points, N) float64 of a slice of the grid's P points.
    num_points
        P.
    lanes
        Weights over classes.
    resampler
        The resamples, and what is made of them.
    """
    weights = lanes.weights.numpy()
    num_lanes, num_resamples = len(weights), resampler.num_resamples
    size = int(np.clip(TILE_BYTES // max(1, 32 * num_lanes * num_resamples), 1, TILE_POINTS))
    parts = []
    for start in range(0, num_points, size):
        points = slice(start, min(start + size, num_points))
        with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
            values = read(points)
            tile = np.zeros((size, values.shape[1]))
            tile[: len(values)] = values
            parts.append([array[: len(values)] for array in _tile_intervals(tile, weights, resampler)])
    return Intervals(*(np.concatenate(arrays) for arrays in zip(*parts)))


def _tile_intervals(tile: np.ndarray, weights: np.ndarray, resampler: Resampler) -> list[np.ndarray]:
    """Return mean, low, high, stderr and degrees, each (T, L), of values (T, N) and weights (L, C)."""
    shape = (len(tile), len(weights))
    mean, variance, fourth, second, third = (np.zeros(shape) for _ in range(5))
    deviation = np.zeros((*shape, resampler.num_resamples))
    spread = np.zeros_like(deviation) if resampler.method == "studentised" else deviation
    for c, (rows, counts) in enumerate(zip(resampler.strata.rows, resampler.counts)):
        used = np.flatnonzero(weights[:, c])
        if not len(used) or not len(rows):
            continue
        n, w = len(rows), weights[used, c]
        values = tile[:, rows]
        centre = values.mean(1, keepdims=True)
        mean[:, used] += w * centre
        if n == 1:
            variance[:, used] = np.nan
            continue
        values = values - centre
        per_mean = np.square(values).sum(1, keepdims=True) / ((n - 1) * n)
        variance[:, used] += w**2 * per_mean
        fourth[:, used] += (w**2 * per_mean) ** 2 / (n - 1)
        second[:, used] += w**2 * per_mean * (n - 1) / n
        third[:, used] += w**3 * (values**3).sum(1, keepdims=True) / n**3
        drawn = counts.T.astype(np.float64)
        shift = values @ drawn / n
        deviation[:, used] += w[:, None] * shift[:, None]
        if resampler.method == "studentised":
            squares = np.maximum(np.square(values) @ drawn / n - shift**2, 0) / (n - 1)
            spread[:, used] += w[:, None] ** 2 * squares[:, None]
    stderr = np.sqrt(variance)
    degrees = np.where(variance > 0, variance**2 / fourth, np.nan)
    if resampler.num_resamples == 0:
        return [mean, np.full(shape, np.nan), np.full(shape, np.nan), stderr, degrees]
    if resampler.method == "studentised":
        low, high = _studentised(deviation, spread, stderr, degrees, resampler.level)
    else:
        low, high = _resampled(deviation, np.where(second > 0, third / (6 * second**1.5), 0.0), resampler)
    low, high = mean + low, mean + high
    for bound in (low, high):
        bound[variance == 0] = mean[variance == 0]
        bound[~np.isfinite(variance)] = np.nan
    stderr[~np.isfinite(variance)] = np.nan
    return [mean, low, high, stderr, degrees]


def _studentised(
    deviation: np.ndarray, spread: np.ndarray, stderr: np.ndarray, degrees: np.ndarray, level: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the bootstrap-t interval (T, L) around the mean, never narrower than Student's."""
    tail = (1 - level) / 2
    root = np.sqrt(spread)
    statistics = np.where(root > ROUNDING * stderr[..., None], deviation / root, np.nan)
    statistics.sort(-1)
    low, high = quantile_of_sorted(statistics, tail), quantile_of_sorted(statistics, 1 - tail)
    low, high = held_to_student(low, high, np.where(degrees > 0, degrees, 1.0), level=level)
    return -high * stderr, -low * stderr


def _resampled(deviation: np.ndarray, acceleration: np.ndarray, resampler: Resampler) -> tuple[np.ndarray, np.ndarray]:
    """Return the percentile, basic or BCa interval (T, L) around the mean; BCa with the jackknife's acceleration."""
    deviation.sort(-1)
    tails = np.full((2, *acceleration.shape), (1 - resampler.level) / 2)
    tails[1] = 1 - tails[1]
    if resampler.method == "bca":
        below = ((deviation < 0).mean(-1) + (deviation <= 0).mean(-1)) / 2
        bias = scipy.special.ndtri(below)
        moved = bias + scipy.special.ndtri(tails)
        tails = scipy.special.ndtr(bias + moved / (1 - acceleration * moved))
    low, high = quantile_of_sorted(deviation, tails[0]), quantile_of_sorted(deviation, tails[1])
    return (-high, -low) if resampler.method == "basic" else (low, high)


def quantile_of_sorted(values: np.ndarray, level: float | np.ndarray) -> np.ndarray:
    """Return the linearly interpolated quantile of the last axis, sorted, NaN last and left out."""
    num = np.isfinite(values).sum(-1)
    place = np.nan_to_num(np.asarray(level) * np.maximum(num - 1, 0))
    lower = np.floor(place).astype(np.int64)
    upper = np.minimum(lower + 1, np.maximum(num - 1, 0))
    first = np.take_along_axis(values, lower[..., None], -1)[..., 0]
    second = np.take_along_axis(values, upper[..., None], -1)[..., 0]
    return np.where(num > 0, first + (place - lower) * (second - first), np.nan)


def increases(values: xr.DataArray, reference: xr.DataArray) -> Read:
    """Return a reader of values (pair, beta, alpha, example) minus their reference (pair, example), in float64."""
    flat, origin = points_of(values), points_of(reference)
    owner = np.arange(len(flat)) // (len(flat) // len(origin))

    def read(points: slice) -> np.ndarray:
        return flat[points].astype(np.float64) - origin[owner[points]]

    return read


def as_dataset(values: dict[str, np.ndarray], like: xr.DataArray, lanes: Lanes) -> xr.Dataset:
    """Return arrays (P, L) as variables over the grid of ``like`` (..., example) and the lanes."""
    dims = grid_dims(like)
    shape = [like.sizes[dim] for dim in dims]
    out = xr.Dataset(
        {name: ((*dims, "lane"), array.reshape(*shape, len(lanes))) for name, array in values.items()},
        coords={dim: like[dim] for dim in dims},
    )
    return out.assign_coords(
        lane=list(lanes.names), lane_kind=("lane", list(lanes.kinds)), lane_group=("lane", list(lanes.groups))
    )


def lane_notes(lanes: Lanes, strata: Strata) -> list[str]:
    """Return per lane why it has no interval, or nothing."""
    notes = []
    for row in lanes.weights.numpy():
        alone = [strata.class_names[c] for c in np.flatnonzero(row) if strata.counts[c] == 1]
        named = ", ".join(alone[:3]) + (" and others" if len(alone) > 3 else "")
        notes.append(f"no interval: one image of class {named}, whose spread is unknown" if alone else "")
    return notes


def describe(resampler: Resampler, seed: int) -> dict[str, object]:
    """Return what a result records of its resamples."""
    noise = np.sqrt((1 - resampler.level) / 2 * (1 + resampler.level) / 2 / max(1, resampler.num_resamples))
    return {
        "interval": f"{resampler.method} bootstrap over images within classes, the same at every point",
        "interval_level": resampler.level,
        "interval_resamples": resampler.num_resamples,
        "interval_seed": seed,
        "interval_noise": f"each tail's level is known to {noise:.1g} (standard error over resamples)",
        "interval_of": "images taken as independent draws of their class; weights and directions as given",
    }


def paired_bootstrap(
    cube: xr.Dataset,
    *,
    lanes: LaneChoice | Lanes | None = None,
    num_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    reference: Reference = "centre",
    method: Method = "studentised",
) -> xr.Dataset:
    r"""Return every lane's increase of the loss at every point, with intervals over the images.

    The increase of image i is :math:`d_i = \ell_i(p) - \ell_i(p_0)`: both points see the same images, so that only the
    spread of the *difference* enters (paired). Images are redrawn within their class (stratified), the same redraw at
    every point. A lane's increase is :math:`m = \sum_c w_c \bar d_c`, its standard error
    :math:`s = (\sum_c w_c^2 s_c^2 / n_c)^{1/2}` exactly; with the quantiles of :math:`t_r = (m_r - m) / s_r` over the
    resamples the studentised interval is :math:`[m - t_{1-\alpha/2}\, s,\; m - t_{\alpha/2}\, s]`.

    Parameters
    ----------
    cube
        ``loss`` (pair, beta, alpha, example), nats, of one split; see :func:`landscape.surface.cube.examples_of`.
    lanes
        As for ``measure_surface``, or lanes from :func:`landscape.surface.cube.cube_lanes`.
    num_resamples
        Resamples R.
    level
        Confidence of each interval on its own: not of a whole curve at once.
    seed
        Root of the streams, one per split and class.
    reference
        The point that increases count from: ``"centre"`` (the weights), a mapping such as ``{"alpha": 1.0}``, or the
        losses themselves as a DataArray (example), for a grid that does not hold the point.
    method
        ``"studentised"``; ``"percentile"``, ``"basic"`` and ``"bca"`` are too narrow for small classes.

    Returns
    -------
    xarray.Dataset
        ``increase``, ``increase_low``, ``increase_high``, ``increase_stderr`` (pair, beta, alpha, lane) float64, nats;
        ``num_examples`` and ``interval_note`` (lane): why a lane has no interval, or nothing.

    Raises
    ------
    LandscapeError
        For a cube of two splits, a reference off the grid, an unknown lane, or too few resamples for the level.

    Notes
    -----
    Efron and Tibshirani, *An Introduction to the Bootstrap*, 1993, section 12.5, per stratum. It differs:

    1. The interval is never narrower than Student's with Welch and Satterthwaite's degrees of freedom.
    2. Quantiles count up to five times Student's, and resamples without spread not at all.
    3. A class of one image has no spread to resample: it and every lane with weight on it has no interval (NaN), because
       leaving its part out would understate the error. ``interval_note`` names the class.

    Examples
    --------
    >>> losses = np.array([[1.0, 2.0, 4.0], [1.5, 2.5, 4.5]], dtype=np.float32)
    >>> cube = xr.Dataset(
    ...     {"loss": (("alpha", "example"), losses)},
    ...     coords={"alpha": [0.0, 1.0], "example_class": ("example", [0, 0, 0])},
    ... )
    >>> found = paired_bootstrap(cube, lanes="all").sel(alpha=1.0, lane="all")
    >>> found.increase.item(), found.increase_low.item(), found.increase_high.item()  # every image rises by one half
    (0.5, 0.5, 0.5)
    """
    require_cube(cube)
    chosen = cube_lanes(cube, lanes)
    resampler = resampler_of(cube, num_resamples=num_resamples, level=level, seed=seed, method=method)
    losses = cube["loss"]
    read = increases(losses, require_reference(losses, reference))
    found = image_intervals(read, int(np.prod([losses.sizes[d] for d in grid_dims(losses)])), chosen, resampler)
    out = as_dataset(named_intervals("increase", found), losses, chosen)
    out["num_examples"] = ("lane", np.asarray(chosen.num_examples))
    out["interval_note"] = ("lane", lane_notes(chosen, resampler.strata))
    out.attrs = {**cube.attrs, **describe(resampler, seed), "units": "nats per example"}
    return out


def named_intervals(name: str, found: Intervals) -> dict[str, np.ndarray]:
    """Return the arrays under the names that results use."""
    return {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high, f"{name}_stderr": found.stderr}
