"""Every lane's loss at points of weight space: all classes, both splits and both BatchNorm policies in one walk."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name
from landscape.results import Journal
from landscape.risk.evaluator import ClassSums, PointEvaluator, Precision
from landscape.risk.lanes import Lanes
from landscape.risk.model import ModelRisk
from landscape.risk.protocol import ClassRisk

Policy = Literal["frozen", "recalibrate", "both"]
PREFIXES = {"frozen": "", "recalibrate": "recalibrated_"}
HELD_OUT = "held_out_"
# A row that takes longer is written to the journal in parts, so that a killed run loses no more than this.
SECONDS_BETWEEN_PARTS = 2.0

Values = dict[str, Tensor]


def class_losses(risk: ClassRisk, theta: Tensor) -> dict[str, Tensor]:
    """Return ``loss`` (C,), plain cross-entropy where the risk knows it, and ``own_loss`` where that differs."""
    values = risk.evaluate(theta)
    if "cross_entropy" not in values or risk.attributes.get("objective") == "ce":
        return {"loss": values["loss"]}
    return {"loss": values["cross_entropy"], "own_loss": values["loss"]}


@dataclass(frozen=True)
class Side:
    """One split of the data: its examples at any theta, and how they make up lanes."""

    prefix: str
    risk: ModelRisk
    evaluator: PointEvaluator
    sums: ClassSums
    weights: Tensor  # (L, C) float64 on the device
    draws: int  # rows of one example

    @classmethod
    def of(cls, prefix: str, risk: ModelRisk, lanes: Lanes, precision: Precision) -> Side:
        """Prepare the examples that the lanes weigh."""
        classes = torch.nonzero((lanes.weights != 0).any(0))[:, 0].tolist()
        evaluator = PointEvaluator(risk, classes=classes, precision=precision)
        sums = ClassSums.of(evaluator, len(risk.class_names))
        return cls(prefix, risk, evaluator, sums, lanes.weights.to(risk.device), risk.draws_per_example)

    def lane_values(self, class_values: Tensor) -> Tensor:
        """Return (Q, L) of class values (Q, C); classes without weight (perhaps NaN) do not enter."""
        terms = torch.where(self.weights != 0, self.weights * class_values[:, None], 0.0)
        return terms.sum(-1)

    def paired_stderr(self, increase: Tensor) -> Tensor:
        r"""Return (L,): :math:`\sqrt{\sum_c w_c^2 s_c^2 / n_c}` of per-row increases (M,), rows of an example averaged.

        NaN where a class that the lane weighs has a single example.
        """
        counts = self.sums.offsets.diff() // self.draws
        each = increase.view(-1, self.draws).mean(1)
        classes = torch.repeat_interleave(torch.arange(len(counts), device=each.device), counts, output_size=len(each))
        offsets = self.sums.offsets // self.draws
        means = torch.segment_reduce(each, "sum", offsets=offsets, axis=0) / counts
        squares = torch.segment_reduce((each - means[classes]) ** 2, "sum", offsets=offsets, axis=0)
        variances = torch.full((self.sums.num_classes,), torch.nan, dtype=torch.float64, device=each.device)
        variances[list(self.sums.index)] = squares / (counts - 1) / counts  # 0 / 0 for one example
        return torch.where(self.weights != 0, self.weights**2 * variances, 0.0).sum(-1).sqrt()


class NetworkWalk:
    """Lane values of a network at any theta, each set of weights placed once for all that is asked there.

    Parameters
    ----------
    risk, lanes
        The examples under study and the lanes.
    held_out
        A second risk of the same network on other examples, with its own lanes; walked at the same time.
    policy
        BatchNorm statistics: ``"frozen"``, ``"recalibrate"`` or ``"both"``.
    precision, keep_examples
        Of :class:`PointEvaluator`; whether to keep every example's loss at every point.
    """

    def __init__(
        self,
        risk: ModelRisk,
        lanes: Lanes,
        *,
        held_out: tuple[ModelRisk, Lanes] | None = None,
        policy: Policy = "frozen",
        precision: Precision = "exact",
        keep_examples: bool = False,
    ) -> None:
        self.risk, self.keep_examples = risk, keep_examples
        self.policies = tuple(PREFIXES) if policy == "both" else (policy,)
        self._sides = [Side.of("", risk, lanes, precision)]
        if held_out is not None:
            self._sides.append(Side.of(HELD_OUT, *held_out, precision))
        self._centre = self._examples_at(risk.theta)

    def _prefix(self, policy: str) -> str:
        return PREFIXES[policy] if len(self.policies) > 1 else ""

    @property
    def folding_error(self) -> float:
        """Largest difference of a logit that folding BatchNorm makes, relative to the largest logit."""
        return max(side.evaluator.folding_error for side in self._sides)

    def _examples_at(self, theta: Tensor) -> dict[str, Values]:
        """Return, by prefix, every quantity of single rows (M,)."""
        out = {}
        for policy in self.policies:
            buffers = self._sides[0].evaluator.buffers_at(theta) if policy == "recalibrate" else None
            for side in self._sides:
                out[self._prefix(policy) + side.prefix] = side.evaluator(theta, buffers)
        return out

    def at(self, theta: Tensor) -> Values:
        """Return lane values (L,) float64 on the device by variable name, and with ``keep_examples`` (M,) float32."""
        return self._reduced(self._examples_at(theta))

    def at_weights(self) -> Values:
        """Return the same at the risk's own theta, without another evaluation."""
        return self._reduced(self._centre)

    def _reduced(self, examples: dict[str, Values]) -> Values:
        found: Values = {}
        for (prefix, values), side in zip(examples.items(), self._sides * len(self.policies)):
            means = side.lane_values(side.sums.means(torch.stack(list(values.values()))))
            found |= {prefix + name: row for name, row in zip(values, means)}
            loss = values["loss"]
            found[f"{prefix}increase_stderr"] = side.paired_stderr(loss - self._centre[prefix]["loss"])
            if self.keep_examples:
                each = loss.view(-1, side.draws).mean(1)
                found[f"{prefix}example_loss"] = each.float()
        return found

    def logit_norms(self) -> np.ndarray:
        """Return (L,): the mean norm of the centred logits at the weights, what confidence is measured in."""
        side = self._sides[0]
        parts = []
        for rows in self.risk.row_chunks():
            logits = self.risk.logits(self.risk.theta, rows).detach()
            parts.append(torch.linalg.vector_norm((logits - logits.mean(1, keepdim=True)).double(), dim=1))
        norms = torch.cat(parts)[side.evaluator.rows.to(self.risk.device)]
        return side.lane_values(side.sums.means(norms[None]))[0].cpu().numpy()

    def example_coordinates(self) -> dict[str, np.ndarray]:
        """Return what is known of the kept examples beside their losses.

        ``example_class``, ``example_row`` (file order) and ``example_split`` per side, ``example_centre_loss`` (the loss at
        the weights) per policy and side.
        """
        out: dict[str, np.ndarray] = {}
        for (prefix, values), side in zip(self._centre.items(), self._sides * len(self.policies)):
            out[f"{prefix}example_centre_loss"] = values["loss"].view(-1, side.draws).mean(1).cpu().numpy()
        for side in self._sides:
            draws = side.draws
            out[f"{side.prefix}example_class"] = side.evaluator.labels[::draws].cpu().numpy()
            rows = side.risk.file_rows[side.evaluator.rows[::draws]].numpy() // draws
            out[f"{side.prefix}example_row"] = rows
            split = str(side.risk.attributes.get("split", "train" if not side.prefix else "held out"))
            out[f"{side.prefix}example_split"] = np.full(len(rows), split)
        return out


class ClassWalk:
    """Lane losses of a risk that knows class losses only: a toy, or batches normalised by their own statistics."""

    keep_examples = False
    folding_error = 0.0

    def __init__(self, risk: ClassRisk, lanes: Lanes) -> None:
        self._risk, self._weights = risk, lanes.weights

    def at(self, theta: Tensor) -> Values:
        """Return lane values (L,) float64 by variable name."""
        weights = self._weights
        return {
            name: torch.where(weights != 0, weights * values, torch.zeros_like(weights)).sum(1)
            for name, values in class_losses(self._risk, theta).items()
        }

    def at_weights(self) -> Values:
        """Return the same at the risk's own theta."""
        return self.at(self._risk.theta)

    def example_coordinates(self) -> dict[str, np.ndarray]:
        """Return nothing: there are no examples."""
        return {}


Walk = NetworkWalk | ClassWalk


def walk_of(
    risk: ClassRisk,
    lanes: Lanes,
    *,
    held_out: tuple[ModelRisk, Lanes] | None = None,
    policy: Policy = "frozen",
    precision: Precision = "exact",
    keep_examples: bool = False,
) -> Walk:
    """Return the way to walk through the weight space of a risk.

    Raises
    ------
    LandscapeError
        For an unknown policy, one that the risk cannot follow, or a held-out risk of another network.
    """
    if policy not in get_args(Policy):
        raise unknown_name("BatchNorm policy", policy, get_args(Policy))
    if not isinstance(risk, ModelRisk) or not risk.is_additive:
        for wish, name in ((policy != "frozen", f"batchnorm '{policy}'"), (keep_examples, "keep_examples")):
            if wish:
                what = "a network's" if not isinstance(risk, ModelRisk) else "one with frozen BatchNorm statistics"
                raise LandscapeError(f"{name}: this risk is not {what}; use 'frozen' and no examples")
        if held_out is not None:
            raise LandscapeError("held_out: expected a network's risk with frozen BatchNorm statistics to walk beside")
        return ClassWalk(risk, lanes)
    if policy != "frozen":
        risk.with_batchnorm("recalibrate")  # refuses a model without statistics
    elif risk.policy == "recalibrate":
        policy = "recalibrate"
    if held_out is not None:
        require_same_network(risk, held_out[0])
    return NetworkWalk(risk, lanes, held_out=held_out, policy=policy, precision=precision, keep_examples=keep_examples)


def require_same_network(risk: ModelRisk, other: object) -> None:
    """Raise LandscapeError unless the other risk has the same weights at the same places."""
    same = isinstance(other, ModelRisk) and other.layout.names == risk.layout.names
    if not same or not (isinstance(other, ModelRisk) and other.theta.equal(risk.theta)):
        raise LandscapeError(
            "held_out: expected a risk of the same weights on other examples, got one of another network"
        )


def example_dimension(name: str) -> str:
    """Return the dimension of a variable or coordinate over single examples: those under study, or the held-out ones."""
    return f"{HELD_OUT}example" if HELD_OUT in name else "example"


def policy_text(risk: ClassRisk, policy: Policy) -> str:
    """Return what a result records about BatchNorm."""
    own = str(risk.attributes.get("batchnorm", "none"))
    if policy == "frozen" or not isinstance(risk, ModelRisk):
        return own
    again = str(risk.with_batchnorm("recalibrate").attributes["batchnorm"])
    return again if policy == "recalibrate" else f"{own}; variables recalibrated_*: {again}"


def preview_error(preview: Walk, exact: Walk, points: Sequence[Tensor]) -> dict[str, Any]:
    """Return the attributes that say how far a preview is off: the largest error of a lane's loss at some points."""
    pairs = [(preview.at(point)["loss"], exact.at(point)["loss"]) for point in points]
    rough, fine = (torch.stack(values).cpu().numpy() for values in zip(*pairs))
    with np.errstate(invalid="ignore"):
        error, size = np.abs(rough - fine), np.nanmax(fine, 0) - np.nanmin(fine, 0)
    worst = float(np.nanmax(error))
    share = float(np.nanmax(error.max(0) / np.maximum(size, 1e-300)))
    return {
        "precision": f"preview (bfloat16): largest error of a lane's loss {worst:.2g} at {len(points)} points",
        "preview_error": worst,
        "preview_error_share": share,
        "exactness": "every cell is an evaluation in bfloat16 over the stated examples; see precision",
    }


def time_walk(risk: ClassRisk, lanes: Lanes, **options: Any) -> tuple[float, float]:
    """Return the seconds that preparing a walk takes, and one point of it: the median of five, after one that warms up.

    ``options`` are those of :func:`walk_of`.
    """
    start = time.perf_counter()
    walk = walk_of(risk, lanes, **options)
    times = [time.perf_counter() - start]
    for scale in (1.0, 1.01, 0.99, 1.02, 0.98, 1.03):
        start = time.perf_counter()
        values = walk.at(scale * risk.theta)
        values["loss"].cpu()
        times.append(time.perf_counter() - start)
    return times[0], float(np.median(times[2:]))


def walk_points(
    walk: Walk,
    points: Sequence[Callable[[], Tensor]],
    *,
    journal: Journal | None,
    name: str,
    tick: Callable[[], None],
) -> dict[str, np.ndarray]:
    """Return (P, ...) values at P points, each given as a function that makes its theta.

    The block ``name`` of the journal keeps them; while they are computed, finished points are kept as its part.
    """
    stored = journal.stored(name) if journal is not None else None
    if stored is None:
        stored = _walked(walk, points, journal=journal, name=name, tick=tick)
    else:
        for _ in points:
            tick()
    return stored


def _walked(
    walk: Walk, points: Sequence[Callable[[], Tensor]], *, journal: Journal | None, name: str, tick: Callable[[], None]
) -> dict[str, np.ndarray]:
    done = journal.stored(f"{name}/part") if journal is not None else None
    num_done = len(next(iter(done.values()))) if done else 0
    for _ in range(num_done):
        tick()
    fresh: list[Values] = []
    last = time.monotonic()
    try:
        for point in points[num_done:]:
            fresh.append(walk.at(point()))
            tick()
            if journal is not None and time.monotonic() - last > SECONDS_BETWEEN_PARTS:
                done, fresh = journal.store(f"{name}/part", _joined(done, fresh)), []
                last = time.monotonic()
    except BaseException:  # interrupted, or out of memory: what is finished stays
        if journal is not None and fresh:
            journal.store(f"{name}/part", _joined(done, fresh))
        raise
    whole = _joined(done, fresh)
    if journal is not None:
        journal.store(name, whole)
        journal.discard(f"{name}/part")
    return whole


def _joined(done: Mapping[str, Any] | None, fresh: Sequence[Values]) -> dict[str, np.ndarray]:
    """Return what is done with what is fresh; the only place where the device is waited for."""
    if not fresh:
        return {name: np.asarray(values) for name, values in (done or {}).items()}
    parts = {name: torch.stack([values[name] for values in fresh]).cpu().numpy() for name in fresh[0]}
    if not done:
        return parts
    return {name: np.concatenate([done[name], part]) for name, part in parts.items()}
