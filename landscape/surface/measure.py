"""The loss of every class on lines and planes through the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name
from landscape.results import Journal, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, Lanes, ModelRisk, lanes_of
from landscape.risk.augmented import require_fixed
from landscape.risk.evaluator import Precision
from landscape.risk.points import (
    Policy,
    corners,
    example_dimension,
    point_at,
    policy_text,
    preview_error,
    walk_of,
    walk_points,
)
from landscape.surface.axes import cosine, random_directions

Progress = Callable[[int, int, str], None]
Kind = Literal["line", "plane"]
KINDS: tuple[Kind, ...] = ("line", "plane")
DEFAULT_LINE = np.linspace(-1.0, 1.0, 51)
DEFAULT_PLANE = np.linspace(-1.0, 1.0, 21)


def _coordinates(values: ArrayLike | None, default: np.ndarray, name: str) -> np.ndarray:
    try:
        array = default if values is None else np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.empty(0)
    if array.ndim != 1 or len(array) < 2 or not np.isfinite(array).all() or not (np.diff(array) > 0).all():
        raise LandscapeError(f"{name}: expected at least two finite, increasing coordinates, got {values!r}")
    return array


def _pairs(
    risk: ClassRisk, kind: Kind, directions: Sequence[Tensor] | None, num_pairs: int, seed: int
) -> tuple[list[list[Tensor]], str]:
    num = 1 if kind == "line" else 2
    if directions is None:
        if num_pairs < 1:
            raise LandscapeError(f"num_pairs: expected at least 1, got {num_pairs}")
        pairs = [random_directions(risk, num=num, seed=seed, pair=p) for p in range(num_pairs)]
        _require_directions(pairs)
        return pairs, "filter-normalised, biases and normalisation layers unmoved, orthogonal after scaling"
    if len(directions) != num:
        raise LandscapeError(f"a {kind} needs {num} direction(s), got {len(directions)}")
    given = [torch.as_tensor(d).to(device=risk.theta.device, dtype=torch.float64) for d in directions]
    for d in given:
        if d.shape != risk.theta.shape:
            raise LandscapeError(f"expected directions of shape {tuple(risk.theta.shape)}, got {tuple(d.shape)}")
    _require_directions([given])
    return [given], "as given"


def _require_directions(pairs: Sequence[Sequence[Tensor]]) -> None:
    for d in (d for axes in pairs for d in axes):
        if not bool(d.isfinite().all()):
            raise LandscapeError("a direction of the surface is not finite")
        if not bool(d.any()):
            raise LandscapeError("a direction of the surface is zero: the surface would be constant along it")


def measure_surface(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    kind: Kind = "line",
    directions: Sequence[Tensor] | None = None,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    num_pairs: int = 1,
    batchnorm: Policy = "frozen",
    held_out: ModelRisk | None = None,
    keep_examples: bool = False,
    precision: Precision = "exact",
    seed: int = 0,
    group_average: GroupAverage = "examples",
    labels: Sequence[str] | None = None,
    journal: Journal | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    r"""Measure every lane's loss at :math:`\theta + \alpha d_1 + \beta d_2`, all classes from one forward pass a point.

    Parameters
    ----------
    risk, lanes, seed, group_average, journal, progress
        As in :func:`landscape.spectrum.measure_spectrum`; a journal keeps each finished row, and what is finished of
        a slow one.
    kind
        ``"line"`` (one direction) or ``"plane"`` (two).
    directions
        One or two vectors (n,), used exactly as given; None draws ``num_pairs`` random filter-normalised ones.
    x, y
        Increasing coordinates alpha and beta in units of the directions; by default 51 points of [-1, 1] on a line,
        21 by 21 on a plane. They need not be symmetric, equal, or contain 0.
    num_pairs
        Random directions (pairs of them, for planes).
    batchnorm
        ``"frozen"`` statistics; ``"recalibrate"``: recomputed at every point over the calibration images; ``"both"``:
        side by side, the second in variables that begin with ``recalibrated_``.
    held_out
        A risk of the same weights on other examples, evaluated in the same walk: variables that begin with
        ``held_out_`` (after ``recalibrated_``).
    keep_examples
        Keep every example's loss at every point: ``example_loss`` (pair, beta, alpha, example) float32, from which
        any other lanes and any paired interval follow without another measurement.
    precision
        ``"exact"``, in the risk's dtype, or ``"preview"``: bfloat16, with the error that it made at a few points.
    labels
        What the axes mean, for figures.

    Returns
    -------
    xarray.Dataset
        ``loss`` (pair, beta, alpha, lane), plain cross-entropy for a classifier, in nats per example, NaN and inf as
        they came; ``done`` (pair, beta, alpha); ``own_loss`` where the risk's objective is another loss. A line has
        no ``beta``. Networks add ``error`` (share of wrong answers), ``margin`` (mean of the class's logit minus the
        largest other one) and ``increase_stderr``: the standard error over images of the loss minus the loss at the
        weights, the same images at both, classes as strata; NaN where a class has one image. Every value is an exact
        evaluation over the stated examples; nothing is interpolated.

    Raises
    ------
    LandscapeError
        For bad coordinates or directions, an unknown lane, recalibration of a model without BatchNorm, or inputs that
        are augmented anew at every evaluation.

    Examples
    --------
    >>> from landscape import AnalyticRisk
    >>> risk = AnalyticRisk(lambda t: (t[0] + 10 * t[1])[None], torch.zeros(2, dtype=torch.float64))
    >>> e1, e2 = torch.eye(2, dtype=torch.float64)
    >>> result = measure_surface(risk, "all", kind="plane", directions=[e1, e2], x=[0, 1, 2], y=[0, 3])
    >>> result.loss.sel(alpha=2, beta=3).item()
    32.0
    """
    if kind not in KINDS:
        raise unknown_name("kind of surface", kind, KINDS)
    require_fixed(risk, "a surface")
    chosen = lanes_of(risk, lanes, group_average=group_average)
    beside = None if held_out is None else (held_out, lanes_of(held_out, lanes, group_average=group_average))
    alphas = _coordinates(x, DEFAULT_LINE if kind == "line" else DEFAULT_PLANE, "x")
    betas = np.zeros(1) if kind == "line" else _coordinates(y, DEFAULT_PLANE, "y")
    pairs, normalization = _pairs(risk, kind, directions, num_pairs, seed)
    shared: dict[str, Any] = {"held_out": beside, "policy": batchnorm}
    walk = walk_of(risk, chosen, precision=precision, keep_examples=keep_examples, **shared)
    total, done = len(pairs) * len(betas) * len(alphas), 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total, f"{kind}, point {done} of {total}")

    rows = []
    for number, axes in enumerate(pairs):
        for i, beta in enumerate(betas):
            name = f"surface/{kind}/pair={number}/row={i}"
            places = [partial(point_at, risk, axes, float(alpha), float(beta)) for alpha in alphas]
            rows.append(walk_points(walk, places, journal=journal, name=name, tick=tick))
    dataset = _grid(rows, kind, len(pairs), alphas, betas, chosen)
    if keep_examples:
        coordinates = walk.example_coordinates()
        dataset = dataset.assign_coords({k: (example_dimension(k), v) for k, v in coordinates.items()})
    if beside is not None:
        dataset["held_out_num_examples"] = ("lane", np.asarray(beside[1].num_examples))
    norms = [[float(torch.linalg.vector_norm(d.double())) for d in axes] for axes in pairs]
    dataset.attrs = {
        **risk.attributes,
        "kind": kind,
        "seed": seed,
        "group_average": group_average,
        "batchnorm": policy_text(risk, batchnorm),
        "normalization": normalization,
        "direction_norms": norms,
        "direction_cosines": [cosine(*axes) for axes in pairs] if kind == "plane" else [],
        "theta_norm": float(torch.linalg.vector_norm(risk.theta.double())),
        "alpha_label": labels[0] if labels else "alpha (first direction)",
        "beta_label": labels[1] if labels and len(labels) > 1 else "beta (second direction)",
        "units": "nats per example; coordinates in units of the directions",
        "exactness": "every cell is a full evaluation over the stated examples",
        "folding_error": walk.folding_error,
        "versions": versions(),
    }
    if held_out is not None:
        dataset.attrs["held_out"] = str(held_out.attributes.get("split", "other examples"))
    if precision == "preview":
        exact = walk_of(risk, chosen, **shared)
        dataset.attrs |= preview_error(walk, exact, [point_at(risk, pairs[0], a, b) for a, b in corners(alphas, betas)])
    return dataset


def _grid(
    rows: Sequence[Mapping[str, np.ndarray]],
    kind: Kind,
    num_pairs: int,
    alphas: np.ndarray,
    betas: np.ndarray,
    lanes: Lanes,
) -> xr.Dataset:
    shape = (num_pairs, len(betas), len(alphas))
    dims: tuple[str, ...] = ("pair", "beta", "alpha")
    dataset = xr.Dataset(
        coords={"pair": np.arange(num_pairs), "beta": betas, "alpha": alphas, "lane": list(lanes.names)}
    )
    for name in rows[0]:
        values = np.stack([row[name] for row in rows])
        last = "lane" if not name.endswith("example_loss") else example_dimension(name)
        dataset[name] = ((*dims, last), values.reshape(*shape, values.shape[-1]))
    dataset["done"] = (dims, np.ones(shape, dtype=bool))
    dataset["num_examples"] = ("lane", np.asarray(lanes.num_examples))
    if kind == "line":
        dataset = dataset.isel(beta=0, drop=True)
    return dataset.assign_coords(lane_kind=("lane", list(lanes.kinds)), lane_group=("lane", list(lanes.groups)))
