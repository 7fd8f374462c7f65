"""Head against tail at one sample size: every class on as many images as the smallest has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from landscape.errors import LandscapeError, require_whole
from landscape.randomness import stream
from landscape.ratios import curvature_ratio
from landscape.results import Journal, keep_block, savable, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.spectrum.extremes import find_extremes_of
from landscape.spectrum.lanczos import sphere
from landscape.spectrum.measure import plan_waves
from landscape.spectrum.options import SpectrumOptions

Progress = Callable[[int, int, str], None]

QUANTITIES = ("lambda_min", "lambda_max", "ratio", "gradient_norm")


@savable
@precise_arithmetic()
def measure_matched(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    num_draws: int = 3,
    size: int | None = None,
    options: SpectrumOptions | None = None,
    seed: int = 0,
    group_average: GroupAverage = "examples",
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure the extremes of each lane with every class cut down to the same number of examples.

    A class of few images has a Hessian of lower rank, a mean over less, and mostly a larger gradient: head against tail
    at their own sizes compares sample sizes as well. Each draw gives every class ``size`` of its examples, without
    replacement, from a stream named by draw and class; what then still differs is not the sample size.

    Parameters
    ----------
    risk
        A network's risk, whose examples can be drawn from.
    lanes
        As for :func:`landscape.spectrum.measure.measure_spectrum`; every class that has examples by default. A group
        holds ``size`` examples of each of its classes.
    num_draws
        Draws of the examples.
    size
        Examples of each class; by default as many as the smallest class of the lanes has.
    options
        Cost and tolerance of the extreme runs; no density is measured.
    seed
        Root seed of the draws and of the start vectors.
    group_average
        For the lanes at full size; at matched size both averages agree.
    journal
        Where finished draws are kept.
    progress
        Called as ``progress(done, total, text)`` after each draw and after the measurement at full size.

    Returns
    -------
    xarray.Dataset
        ``lambda_min``, ``lambda_max``, ``ratio`` (:math:`\max(-\lambda_{\min}, 0) / \lambda_{\max}`), ``gradient_norm``
        and the residuals and ``num_hvps`` over (lane, draw); for each of the four ``_mean`` and ``_stderr`` over draws
        and ``_full``, the value at full size, over (lane); ``num_examples`` and ``num_examples_full`` (lane). The
        standard error is that of the draws of subsets: zero, up to the accuracy of the run, for a class that is in
        every draw whole, NaN for one draw.

    Raises
    ------
    LandscapeError
        For a risk without examples, a size that a class does not have, and as in ``measure_spectrum``.
    """
    require_fixed(risk, "a comparison at matched size")
    if not hasattr(risk, "restricted"):
        raise LandscapeError(
            "a comparison at matched size draws examples: expected a network's risk, got a loss without examples"
        )
    require_whole("num_draws", num_draws, 1)
    present = [name for name, count in zip(risk.class_names, risk.class_counts.tolist()) if count]
    chosen = lanes_of(risk, present if lanes is None else lanes, group_average=group_average)
    matched_size = _matched_size(risk, chosen, size)
    settings = replace(options or SpectrumOptions(), num_extremes=1, until="converged", context=False)
    blocks = []
    for draw in [None, *range(num_draws)]:
        key = "matched/full" if draw is None else f"matched/size={matched_size}/draw={draw}"
        blocks.append(
            keep_block(journal, key, lambda d=draw: _measure_draw(risk, chosen, d, matched_size, settings, seed=seed))
        )
        if progress is not None:
            what = "every example" if draw is None else f"draw {draw + 1} of {num_draws}"
            progress(len(blocks), num_draws + 1, f"{matched_size} examples per class: {what}")
    return _assemble(risk, chosen, blocks, matched_size).assign_attrs(
        {
            **risk.attributes,
            "kind": "matched",
            "seed": seed,
            "group_average": group_average,
            "normalization": "none: mean loss per lane, curvature per squared weight",
            "size": matched_size,
            "num_draws": num_draws,
            "num_parameters": len(risk.theta),
            "versions": versions(),
            **{f"option_{key}": value for key, value in asdict(settings).items()},
        }
    )


def _matched_size(risk: ClassRisk, lanes: Lanes, size: int | None) -> int:
    used = torch.nonzero((lanes.weights != 0).any(0))[:, 0].tolist()
    smallest = min(used, key=lambda c: int(risk.class_counts[c]))
    most = int(risk.class_counts[smallest])
    if size is None:
        return most
    if not 1 <= size <= most:
        raise LandscapeError(
            f"size: expected 1 to {most}, the examples of the smallest class ('{risk.class_names[smallest]}'), got {size}"
        )
    return size


def draw_rows(risk: ClassRisk, size: int, draw: int, *, seed: int) -> Tensor:
    """Return the ascending rows of ``size`` examples of each class, or of all where it has fewer.

    Where an image has several frozen augmentations, it comes with all of them.
    """
    per_example = getattr(risk, "draws_per_example", 1)
    counts = risk.class_counts.tolist()
    rows, start = [], 0
    for name, count in zip(risk.class_names, counts):
        order = torch.randperm(count, generator=stream(seed, f"matched/draw={draw}/{name}"))
        picked = torch.sort(order[:size]).values
        rows.append(start + (picked[:, None] * per_example + torch.arange(per_example)).flatten())
        start += count * per_example
    return torch.cat(rows)


def _equal_weights(lanes: Lanes) -> Tensor:
    """Return the weights (L, C) where every class has as many examples: pooled lanes weigh their classes equally."""
    shares = (lanes.weights != 0).double()
    shares /= shares.sum(1, keepdim=True)
    is_pooled = torch.tensor([kind in ("group", "all") for kind in lanes.kinds])
    return torch.where(is_pooled[:, None], shares, lanes.weights)


def _measure_draw(
    risk: ClassRisk, lanes: Lanes, draw: int | None, size: int, options: SpectrumOptions, *, seed: int
) -> dict[str, np.ndarray]:
    weights = lanes.weights
    if draw is not None:
        risk = risk.restricted(draw_rows(risk, size, draw, seed=seed).to(risk.theta.device))  # type: ignore[attr-defined]
        weights = _equal_weights(lanes)
    used = tuple(int(risk.class_counts[row != 0].sum()) for row in weights)
    lanes = replace(lanes, weights=weights, num_examples=used)  # for the planning: rows, several draws of each or not
    found: dict[int, dict[str, float]] = {}
    for wave in plan_waves(risk, lanes, range(len(lanes)), options):
        names = [lanes.names[index] for index in wave]
        what = "full" if draw is None else f"draw={draw}"
        starts = torch.cat(
            [sphere(1, len(risk.theta), stream(seed, f"matched/{what}/{name}/extremes")) for name in names]
        )
        norms = torch.linalg.vector_norm(risk.gradients(risk.theta, weights[wave]).double(), dim=1).tolist()
        with risk.hessian(risk.theta, weights[wave]) as product:
            extremes = find_extremes_of(risk, product, weights[wave], starts, names=names, options=options)
        for index, e, norm in zip(wave, extremes, norms):
            found[index] = {
                "lambda_min": e.lambda_min,
                "lambda_max": e.lambda_max,
                "ratio": float(curvature_ratio(e.lambda_min, e.lambda_max)),
                "gradient_norm": norm,
                "lambda_min_error": e.error_min,
                "lambda_max_error": e.error_max,
                "lambda_min_residual": e.residual_min,
                "lambda_max_residual": e.residual_max,
                "num_hvps": e.num_hvps,
            }
    return {key: np.array([found[index][key] for index in range(len(lanes))]) for key in found[0]}


def _assemble(risk: ClassRisk, lanes: Lanes, blocks: list[dict[str, np.ndarray]], size: int) -> xr.Dataset:
    full, *draws = blocks
    dataset = xr.Dataset()
    for key in full:
        dataset[key] = (("lane", "draw"), np.stack([block[key] for block in draws], 1))
    for key in QUANTITIES:
        values = dataset[key].values
        dataset[f"{key}_mean"] = ("lane", values.mean(1))
        count = values.shape[1]
        stderr = values.std(1, ddof=1) / np.sqrt(count) if count > 1 else np.full(len(values), np.nan)
        dataset[f"{key}_stderr"] = ("lane", stderr)
        dataset[f"{key}_full"] = ("lane", full[key])
    for key in ("lambda_min_error", "lambda_max_error"):
        dataset[f"{key}_full"] = ("lane", full[key])
    for key in ("lambda_min", "lambda_max"):
        dataset[key].attrs["units"] = "loss per squared weight"
    dataset["num_examples"] = ("lane", ((lanes.weights != 0).sum(1) * size).numpy())
    dataset["num_examples_full"] = ("lane", np.asarray(lanes.num_examples))
    return dataset.assign_coords(
        lane=list(lanes.names),
        lane_kind=("lane", list(lanes.kinds)),
        lane_group=("lane", list(lanes.groups)),
        draw=np.arange(len(draws)),
    )
