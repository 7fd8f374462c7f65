"""The loss of every class on lines and planes through the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import ArrayLike

from landscape.directions import Normalization, OneDimensional
from landscape.errors import LandscapeError, unknown_name
from landscape.results import Journal, savable, versions
from landscape.risk import ClassRisk, GroupAverage, LaneChoice, ModelRisk, lanes_of
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.augmented import require_fixed
from landscape.risk.evaluator import Precision, require_precision
from landscape.risk.points import (
    NetworkWalk,
    Policy,
    Walk,
    example_dimension,
    policy_text,
    preview_error,
    walk_of,
    walk_points,
)
from landscape.surface.axes import Axes
from landscape.surface.grid import (
    DEFAULT_LINE,
    DEFAULT_PLANE,
    KINDS,
    Directions,
    Kind,
    assemble,
    choose_axes,
    coordinates,
    corners,
    described,
    point_at,
    unmoved,
)
from landscape.surface.quadratic import quadratic_models
from landscape.surface.refinement import Refined, refine_plane

Progress = Callable[[int, int, str], None]
Blocks = dict[str, np.ndarray]


@dataclass
class _Counter:
    """Counts grid points for the caller's progress."""

    progress: Progress | None
    total: int
    kind: str
    done: int = 0

    def skip(self, cells: int) -> None:
        """Count cells that need no evaluation."""
        self.total -= cells

    def __call__(self) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, f"{self.kind}, point {self.done} of {self.total}")


@savable
@precise_arithmetic()
def measure_surface(
    risk: ClassRisk,
    lanes: LaneChoice | None = None,
    *,
    kind: Kind = "line",
    directions: Directions | None = None,
    x: ArrayLike | None = None,
    y: ArrayLike | None = None,
    num_pairs: int = 1,
    normalization: Normalization = "filter",
    one_dimensional: OneDimensional = "zero",
    batchnorm: Policy = "frozen",
    held_out: ModelRisk | None = None,
    keep_examples: bool = False,
    precision: Precision = "exact",
    quadratic: bool = False,
    refine: float | None = None,
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
        One or two vectors (n,), used exactly as given, or :class:`landscape.surface.Axes`, one or one per pair; None
        draws ``num_pairs`` random ones.
    x, y
        Increasing coordinates alpha and beta in units of the directions; by default 51 points of [-1, 1] on a line,
        21 by 21 on a plane. They need not be symmetric, equal, or contain 0.
    num_pairs, normalization, one_dimensional
        Random directions (pairs of them, for planes), and as in :func:`landscape.surface.random_axes`.
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
    quadratic
        Add the quadratic models of :func:`landscape.surface.quadratic_models`.
    refine
        Of a plane, evaluate only as many cells as bring the error of the others below this share of each lane's range,
        see :func:`landscape.surface.refine_plane`; all cells where that takes more than a quarter of them.
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
        evaluation over the stated examples. With ``refine``, the losses where ``interpolated`` (pair, beta, alpha) are
        not, their checked and estimated errors are ``checked_error`` and ``interpolation_error`` (pair, lane) in nats,
        and what is no loss is NaN there.

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
    require_precision(precision)
    if refine is not None and kind == "line":
        raise LandscapeError("refine: expected a plane, got a line; a line is short, evaluate all of it")
    if lanes is None and held_out is not None:  # those that have examples on both sides
        known = lanes_of(held_out, None, group_average=group_average).names
        lanes = [name for name in lanes_of(risk, None, group_average=group_average).names if name in known]
    chosen = lanes_of(risk, lanes, group_average=group_average)
    beside = None if held_out is None else (held_out, lanes_of(held_out, lanes, group_average=group_average))
    alphas = coordinates(x, DEFAULT_LINE if kind == "line" else DEFAULT_PLANE, "x")
    betas = None if kind == "line" else coordinates(y, DEFAULT_PLANE, "y")
    how: dict[str, Any] = {"normalization": normalization, "one_dimensional": one_dimensional}
    pairs = choose_axes(risk, kind, directions, num_pairs=num_pairs, seed=seed, **how)
    shared: dict[str, Any] = {"held_out": beside, "policy": batchnorm}
    walk = walk_of(risk, chosen, precision=precision, keep_examples=keep_examples, **shared)
    tick = _Counter(progress, len(pairs) * len(alphas) * (1 if betas is None else len(betas)), kind)
    points = _Points(risk, walk, pairs, journal, tick)
    refined: list[Refined] = []
    if refine is None or betas is None:
        values = points.rows(kind, alphas, np.zeros(1) if betas is None else betas)
    else:
        values, refined = points.refined(alphas, betas, tolerance=refine, seed=seed)
    dataset = assemble(values, pairs=pairs, alphas=alphas, betas=betas, lanes=chosen)
    dataset.attrs = {
        **risk.attributes,
        "kind": kind,
        "seed": seed,
        "group_average": group_average,
        "class_names": list(risk.class_names),
        "groups": {name: list(members) for name, members in risk.groups.items()},
        **described(pairs, labels),
        "batchnorm": policy_text(risk, batchnorm),
        "theta_norm": float(torch.linalg.vector_norm(risk.theta.double())),
        "units": "nats per example; coordinates in units of the directions",
        "exactness": "every cell is a full evaluation over the stated examples",
        "precision": str(risk.attributes.get("dtype", "")),
        "folding_error": walk.folding_error,
        "versions": versions(),
    }
    if isinstance(walk, NetworkWalk):
        dataset["logit_norm"] = ("lane", walk.logit_norms())
        dataset.attrs["excluded"] = unmoved(risk, pairs)
    _add_splits(dataset, walk, beside)
    if refined:
        _add_refinement(dataset, refined, float(refine or 0))
    if precision == "preview":
        exact = walk_of(risk, chosen, **shared)
        ends = corners(alphas, np.zeros(1) if betas is None else betas)
        dataset.attrs |= preview_error(walk, exact, [point_at(risk, pairs[0], *end) for end in ends])
    if quadratic:
        vectors = [list(axes.vectors) for axes in pairs]
        dataset = quadratic_models(dataset, risk, vectors, held_out=held_out, lanes=lanes)
    return dataset


@dataclass(frozen=True)
class _Points:
    """The evaluations of a surface, kept in the journal block by block."""

    risk: ClassRisk
    walk: Walk
    pairs: Sequence[Axes]
    journal: Journal | None
    tick: _Counter

    def cells(self, name: str, axes: Axes, cells: Sequence[tuple[float, float]]) -> Blocks:
        """Return the values at (alpha, beta) of some cells, a block of the journal."""
        places = [partial(point_at, self.risk, axes, float(alpha), float(beta)) for alpha, beta in cells]
        return walk_points(self.walk, places, journal=self.journal, name=name, tick=self.tick)

    def rows(self, kind: Kind, alphas: np.ndarray, betas: np.ndarray) -> Blocks:
        """Return all cells, a block per row."""
        blocks = [
            self.cells(f"surface/{kind}/pair={number}/row={i}", axes, [(alpha, beta) for alpha in alphas])
            for number, axes in enumerate(self.pairs)
            for i, beta in enumerate(betas)
        ]
        return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}

    def refined(
        self, alphas: np.ndarray, betas: np.ndarray, *, tolerance: float, seed: int
    ) -> tuple[Blocks, list[Refined]]:
        """Return all cells, most of them interpolated, and per pair how that went; a block per round."""
        wholes, found = [], []
        for number, axes in enumerate(self.pairs):
            rounds: list[tuple[np.ndarray, Blocks]] = []

            def evaluate(
                cells: np.ndarray, number: int = number, axes: Axes = axes, rounds: Any = rounds
            ) -> np.ndarray:
                name = f"surface/plane/pair={number}/round={len(rounds)}"
                rounds.append((cells, self.cells(name, axes, [(a, b) for a, b in cells])))
                return np.concatenate([rounds[-1][1][name] for name in losses_of(rounds[-1][1])], axis=1)

            found.append(refine_plane(evaluate, alphas, betas, tolerance=tolerance, seed=seed))
            self.tick.skip(found[-1].evaluated.size - found[-1].num_evaluations)
            wholes.append(_completed(rounds, found[-1], alphas, betas))
        return {name: np.concatenate([whole[name] for whole in wholes]) for name in wholes[0]}, found


def losses_of(names: Mapping[str, Any]) -> list[str]:
    """Return the lane losses among the names of variables: what a refinement interpolates."""
    return [name for name in names if name.endswith("loss") and not name.endswith("example_loss")]


def _completed(
    rounds: Sequence[tuple[np.ndarray, Blocks]], refined: Refined, alphas: np.ndarray, betas: np.ndarray
) -> Blocks:
    """Return (cells, ...) of a plane: losses as refined, everything else where it was evaluated and NaN elsewhere."""
    cells = np.concatenate([asked for asked, _ in rounds])
    row, column = np.searchsorted(betas, cells[:, 1]), np.searchsorted(alphas, cells[:, 0])
    place = row * len(alphas) + column
    num, out, start = len(alphas) * len(betas), {}, 0
    for name in rounds[0][1]:
        evaluated = np.concatenate([block[name] for _, block in rounds])
        out[name] = np.full((num, evaluated.shape[1]), np.nan, dtype=evaluated.dtype)
        out[name][place] = evaluated
    for name in losses_of(rounds[0][1]):
        width = out[name].shape[1]
        out[name] = refined.values.reshape(num, -1)[:, start : start + width].copy()
        start += width
    return out


def _add_splits(dataset: xr.Dataset, walk: Walk, beside: Any) -> None:
    if walk.keep_examples:
        for name, values in walk.example_coordinates().items():
            dataset.coords[name] = (example_dimension(name), values)
    if beside is not None:
        held_out, lanes = beside
        dataset["held_out_num_examples"] = ("lane", np.asarray(lanes.num_examples))
        dataset.attrs["held_out"] = str(held_out.attributes.get("split", "other examples"))


def _add_refinement(dataset: xr.Dataset, refined: Sequence[Refined], tolerance: float) -> None:
    """Add what was interpolated, to what error: shares of a lane's range become nats."""
    dataset["interpolated"] = (("pair", "beta", "alpha"), np.stack([~one.evaluated for one in refined]))
    ranges = dataset["loss"].max(("beta", "alpha")) - dataset["loss"].min(("beta", "alpha"))
    num = dataset.sizes["lane"]
    for name, field in (("checked_error", "checked_error"), ("interpolation_error", "error_estimate")):
        shares = np.stack([getattr(one, field)[:num] for one in refined])
        dataset[name] = (("pair", "lane"), shares * ranges.transpose("pair", "lane").values)
    evaluations, cells = sum(one.num_evaluations for one in refined), sum(one.evaluated.size for one in refined)
    if evaluations < cells:
        dataset.attrs["exactness"] = (
            f"{evaluations} of {cells} cells are full evaluations, the others interpolated to a checked "
            f"{tolerance:.2g} of each lane's range; with 95 % confidence at most "
            f"{max(one.outside_share for one in refined):.2g} of the cells are off by more"
        )
    dataset.attrs |= {"refine": tolerance, "num_evaluations": evaluations}
