"""The radius at which a lane's loss has risen by delta: a flatness number that cannot saturate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import torch
import xarray as xr
from scipy.stats import binom
from torch import Tensor

from landscape.errors import LandscapeError, require_whole
from landscape.perturbation import lane_means
from landscape.results import Journal, keep_block, savable, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.risk.normalised import logit_normalised
from landscape.risk.points import walk_of
from landscape.surface.axes import random_directions
from landscape.surface.crossing import find_radii, require_deltas, require_scan

Progress = Callable[[int, int, str], None]
SIDES = (1, -1)
# Nominal coverage of the interval of a median.
CONFIDENCE = 0.95


@dataclass(frozen=True)
class RadiusOptions:
    """What is searched and how finely; validated once.

    Attributes
    ----------
    deltas
        Rises of the loss in nats, each positive: a small one is a flatness number, a large one a plot's range.
    num_directions
        Random filter-normalised directions; both sides of each are walked. Six give the median a 95 % interval.
    start, limit, growth
        Radii scanned outwards: start, start * growth, ..., limit, in units of the direction (filter norms). A rise
        that begins and ends between two of them is not seen.
    tolerance
        Widest bracket that is left, relative to the radius (or 1e-12). The estimate within it is closer by far where the loss is
        smooth, and directions differ by more.
    logits
        ``"raw"``, or ``"normalised"``: each example's logits are centred and divided by their norm before the
        cross-entropy, so that confidence alone (the scale of the logits) no longer decides.
    """

    deltas: tuple[float, ...] = (0.1, 1.0)
    num_directions: int = 6
    start: float = 1 / 64
    limit: float = 2.0
    growth: float = 2.0
    tolerance: float = 0.05
    logits: Literal["raw", "normalised"] = "raw"

    def __post_init__(self) -> None:
        require_deltas(self.deltas)
        require_scan(self.start, self.limit, self.growth, self.tolerance)
        require_whole("num_directions", self.num_directions, 1)
        if self.logits not in ("raw", "normalised"):
            raise LandscapeError(f"logits: expected 'raw' or 'normalised', got {self.logits!r}")


@savable
@precise_arithmetic()
def measure_radii(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    directions: Sequence[Tensor] | None = None,
    options: RadiusOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure :math:`r_c(\delta)`, the radius at which each lane's loss has risen by delta, along random directions.

    Direction p is the line that :func:`landscape.surface.measure_surface` draws as pair p of the same seed.

    Parameters
    ----------
    risk, lanes, seed, group_average, journal, progress
        As in :func:`landscape.spectrum.measure_spectrum`.
    directions
        Vectors (n,) to walk along, both ways, used exactly as given: the axes of a plane, for its range. None draws
        random filter-normalised ones.
    options
        Rises, number of directions, scan and tolerance.

    Returns
    -------
    xarray.Dataset
        ``radius``, ``radius_low``, ``radius_high`` (delta, direction, side, lane): estimate and bracket, see
        :class:`landscape.surface.Radii`; ``loss`` (lane) at the weights; ``num_evaluations`` (direction, side). For
        random directions ``median_radius``, ``median_low``, ``median_high`` (delta, lane): over directions and sides,
        with the interval of order statistics, whose coverage is the attribute ``interval_coverage``; NaN where a
        radius is unknown.

    Raises
    ------
    LandscapeError
        For an unknown lane, a direction that does not fit, logits where there are none, or inputs that are augmented
        anew at every evaluation.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> bowl = AnalyticRisk(lambda x: (x @ x)[None], torch.zeros(3, dtype=torch.float64))
    >>> found = measure_radii(bowl, "all", options=RadiusOptions(deltas=(0.04,), tolerance=1e-6))
    >>> round(float(found.median_radius[0, 0]), 5)  # r^2 |d|^2 = 0.04 with |d| = 1
    0.2

    Notes
    -----
    A confident class is flat because it is confident: compare radii at equal delta, and with ``logits="normalised"``.
    In units of the filters' norms a radius does not change when a filter is rescaled and the next layer undoes it.
    """
    require_fixed(risk, "a radius")
    settings = options or RadiusOptions()
    chosen = lanes_of(risk, lanes, group_average=group_average)
    studied = logit_normalised(risk) if settings.logits == "normalised" else risk
    axes = _axes(risk, directions, settings.num_directions, seed)
    blocks = []
    for number, direction in enumerate(axes):
        for side in SIDES:
            name = f"radius/logits={settings.logits}/direction={number}/side={side}"
            blocks.append(
                keep_block(journal, name, lambda d=direction, s=side: _walk(studied, chosen, s * d, settings))
            )
            if progress is not None:
                progress(len(blocks), 2 * len(axes), f"radius, direction {number + 1} of {len(axes)}")
    dataset = _assembled(blocks, chosen, settings)
    if directions is None:
        _add_medians(dataset)
    dataset.attrs |= {
        **risk.attributes,
        "kind": "radius",
        "seed": seed,
        "group_average": group_average,
        "normalization": "as given"
        if directions is not None
        else "filter-normalised, biases and normalisation layers unmoved",
        "loss_of_radii": "cross-entropy of normalised logits"
        if settings.logits == "normalised"
        else "plain cross-entropy where the risk is a classifier's",
        "units": "radii in units of the directions; losses in nats per example",
        "exactness": "a radius lies in its bracket; a rise between two evaluated radii that has ended there is not seen",
        "versions": versions(),
        **{f"option_{key}": value for key, value in asdict(settings).items()},
    }
    return dataset


def _axes(risk: ClassRisk, directions: Sequence[Tensor] | None, num: int, seed: int) -> list[Tensor]:
    if directions is None:
        return [random_directions(risk, num=1, seed=seed, pair=p)[0].double() for p in range(num)]
    if not len(directions):
        raise LandscapeError("directions: expected at least one vector, got none")
    given = [torch.as_tensor(d).to(device=risk.theta.device, dtype=torch.float64) for d in directions]
    for d in given:
        if d.shape != risk.theta.shape:
            raise LandscapeError(f"expected directions of shape {tuple(risk.theta.shape)}, got {tuple(d.shape)}")
        if not bool(d.isfinite().all()) or not bool(d.any()):
            raise LandscapeError("directions: expected finite vectors that are not zero")
    return given


def _walk(risk: ClassRisk, lanes: Lanes, direction: Tensor, settings: RadiusOptions) -> dict[str, np.ndarray]:
    walk = walk_of(risk, lanes) if settings.logits == "raw" else None

    def losses(radius: float) -> np.ndarray:
        point = (risk.theta.double() + radius * direction).to(risk.theta.dtype)
        if walk is not None:
            return walk.at(point)["loss"].cpu().numpy()
        return lane_means(lanes, risk.evaluate(point)["loss"])

    found = find_radii(
        losses,
        settings.deltas,
        start=settings.start,
        limit=settings.limit,
        growth=settings.growth,
        tolerance=settings.tolerance,
    )
    return {
        "radius": found.radius,
        "radius_low": found.low,
        "radius_high": found.high,
        "loss": found.losses[0],
        "num_evaluations": np.array(found.num_evaluations),
    }


def _assembled(blocks: Sequence[dict[str, np.ndarray]], lanes: Lanes, settings: RadiusOptions) -> xr.Dataset:
    dims = ("delta", "direction", "side", "lane")
    dataset = xr.Dataset(
        coords={
            "delta": list(settings.deltas),
            "direction": np.arange(len(blocks) // 2),
            "side": list(SIDES),
            "lane": list(lanes.names),
        }
    )
    for name in ("radius", "radius_low", "radius_high"):
        stacked = np.stack([block[name] for block in blocks])  # (direction and side, delta, lane)
        dataset[name] = (dims, stacked.reshape(-1, 2, *stacked.shape[1:]).transpose(2, 0, 1, 3))
    dataset["loss"] = ("lane", blocks[0]["loss"])
    dataset["num_evaluations"] = (dims[1:3], np.array([block["num_evaluations"] for block in blocks]).reshape(-1, 2))
    dataset["num_examples"] = ("lane", np.asarray(lanes.num_examples))
    return dataset.assign_coords(lane_kind=("lane", list(lanes.kinds)), lane_group=("lane", list(lanes.groups)))


def _add_medians(dataset: xr.Dataset) -> None:
    radii = dataset["radius"].transpose("delta", "lane", "direction", "side").values
    for name, values in zip(("median_radius", "median_low", "median_high"), medians(radii)):
        dataset[name] = (("delta", "lane"), values)
    dataset.attrs["interval_coverage"] = median_ranks(dataset.sizes["direction"])[1]


def medians(radii: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the median over directions and sides, and its interval's ends (...,), of radii (..., directions, 2).

    Both sides of a direction count as one draw: the ranks are those of as many draws as directions, each standing twice.
    The stated coverage is exact where the sides are equal, and more where they are not. NaN where a radius is NaN.
    """
    num = radii.shape[-2]
    pooled = np.sort(radii.reshape(*radii.shape[:-2], 2 * num), axis=-1)  # a NaN goes last
    rank, _ = median_ranks(num)
    middle = np.where(np.isinf(pooled[..., num]), np.inf, pooled[..., num - 1 : num + 1].mean(-1))
    found = middle, pooled[..., 2 * rank - 2], pooled[..., 2 * num + 1 - 2 * rank]
    median, low, high = (np.where(np.isnan(pooled[..., -1]), np.nan, values) for values in found)
    return median, low, high


def median_ranks(num: int, confidence: float = CONFIDENCE) -> tuple[int, float]:
    r"""Return j, and the coverage of the interval from the j-th smallest to the j-th largest of ``num`` draws.

    For the median of any continuous distribution it is exactly
    :math:`1 - 2 P(\mathrm{Bin}(num, 1/2) \le j - 1)`; j is the largest with at least ``confidence``, or 1.

    Examples
    --------
    >>> median_ranks(6), median_ranks(3)
    ((1, 0.96875), (1, 0.75))
    """
    rank = 1
    while binom.cdf(rank, num, 0.5) <= (1 - confidence) / 2:
        rank += 1
    return rank, float(max(0.0, 1 - 2 * binom.cdf(rank - 1, num, 0.5)))
