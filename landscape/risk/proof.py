"""The proof that a risk is a function: the same weights give the same losses and gradients, however it is evaluated."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk.batchnorm import batch_normalisations
from landscape.risk.causes import drawn_since, random_states, why_not_repeated

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

# Examples per class and in all that the proof evaluates: enough to meet every layer, cheap beside any analysis.
PER_CLASS = 4
IN_ALL = 64
# Losses and gradients of one machine have equal bits at equal addresses; in float64 other addresses move them by a few
# units of rounding, and noise of 1e-6 stands out by a million.
REPEAT_EPS = 100.0
# Another chunking may change the order of sums, not the value: relative tolerance by precision.
CHUNKING_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-8}

# Further evaluations of what draws random numbers: a coin that falls alike so often does so once in a thousand times.
MORE_DRAWS = 10

# Losses (C,) or (B,) and gradients (B, n).
_Evaluated = tuple[Tensor, Tensor]


def prove_deterministic(risk: ModelRisk) -> None:
    """Evaluate loss and gradient twice and once in chunks of one example; refuse a risk where they differ.

    Raises
    ------
    LandscapeError
        Naming the likely cause: dropout or noise that evaluation mode does not switch off, or a layer that mixes the
        examples of a batch.
    """
    few = few_of(risk)
    weights = (few.class_counts / few.class_counts.sum())[None]
    devices = [risk.device] if risk.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        before = random_states()
        first, again = _evaluate(few, weights), _evaluate(few, weights)
        _require_same(few, weights, first, again)
        if drawn_since(before):  # a coin may fall alike
            for _ in range(MORE_DRAWS):
                _require_same(few, weights, first, _evaluate(few, weights))
        if risk.is_additive:
            _require_unmixed_in_some_precision(few, weights, first)
    values = first[0][few.class_counts > 0] if risk.is_additive else first[0]
    if not bool(values.isfinite().all()):
        raise LandscapeError(f"the loss '{risk.loss_name}' is not finite at the given weights")


def few_of(risk: ModelRisk) -> ModelRisk:
    """Return the risk on a few examples of each class."""
    offsets = risk._examples.offsets
    rows = [torch.arange(a, min(a + PER_CLASS, b)) for a, b in itertools.pairwise(offsets)]
    return risk.restricted(torch.cat(rows)[:IN_ALL])


def _evaluate(few: ModelRisk, weights: Tensor, *, chunk_size: int | None = None) -> tuple[Tensor, Tensor]:
    few._chunk_size = chunk_size
    losses = few.losses(few.theta) if few.is_additive else few.lane_losses(few.theta, weights)
    return losses, few.gradients(few.theta, weights)


def _require_unmixed_in_some_precision(few: ModelRisk, weights: Tensor, whole: tuple[Tensor, Tensor]) -> None:
    try:
        _require_unmixed(few, whole, _evaluate(few, weights, chunk_size=1))
    except LandscapeError:
        # Rounding can switch single ReLUs, and a gradient jumps there: only float64 tells this from mixing.
        exact = few.in_float64()
        try:
            _require_unmixed(exact, _evaluate(exact, weights), _evaluate(exact, weights, chunk_size=1))
        except LandscapeError as error:
            # A state that takes turns may come out even in two evaluations, and odd in as many as there are examples.
            cause = why_not_repeated(few)
            raise (LandscapeError(f"two evaluations at the same weights differ: {cause}") if cause else error) from None
    except ValueError as error:  # a BatchNorm without running statistics has no variance of one example
        message = str(error).splitlines()[0]
        raise LandscapeError(f"the model does not take one example ({message}): {_remedy(few)}") from error


def _require_same(few: ModelRisk, weights: Tensor, first: _Evaluated, again: _Evaluated) -> None:
    if _repeats(first, again, few.device):
        return
    name, difference = next(
        (name, _difference(a, b)) for name, a, b in zip(("loss", "gradient"), first, again) if _difference(a, b) > 0
    )
    # The same sums at other addresses may have other last bits: only float64 tells them from small noise.
    exact = few.in_float64()
    first, allowed = _evaluate(exact, weights), REPEAT_EPS * torch.finfo(torch.float64).eps
    if all(_repeats(first, _evaluate(exact, weights), few.device, allowed=allowed) for _ in range(MORE_DRAWS)):
        return
    cause = why_not_repeated(few) or "the model or loss draws noise in evaluation mode, or keeps a state; switch it off"
    raise LandscapeError(f"two evaluations of the {name} at the same weights differ by {difference:.1e}: {cause}")


def _repeats(first: _Evaluated, again: _Evaluated, device: torch.device, *, allowed: float = 0.0) -> bool:
    # Some CUDA kernels add in any order.
    allowed = 1e-5 if device.type == "cuda" else allowed
    # Losses are differences of logits: their rounding does not shrink with them.
    floors = (1.0 if allowed else 0.0, 0.0)
    return all(
        _difference(a, b) <= allowed * max(float(a.nan_to_num().abs().max()), floor)
        for a, b, floor in zip(first, again, floors)
    )


def _require_unmixed(risk: ModelRisk, whole: tuple[Tensor, Tensor], split: tuple[Tensor, Tensor]) -> None:
    remedy = _remedy(risk)
    for name, a, b in zip(("loss", "gradient"), whole, split):
        scale = float(a.nan_to_num().abs().max()) + 1e-6
        if _difference(a, b) > CHUNKING_TOLERANCE[risk.dtype] * scale:
            raise LandscapeError(
                f"the {name} depends on how the examples are batched (by {_difference(a, b) / scale:.1e} relative): {remedy}"
            )


def _remedy(risk: ModelRisk) -> str:
    without = [name for name, layer in batch_normalisations(risk._model).items() if layer.running_mean is None]
    return (
        f"BatchNorm '{without[0]}' keeps no running statistics; batchnorm='batch' takes those of a lane's examples as "
        "part of the function"
        if without
        else "a layer or loss mixes examples; use one with frozen statistics, or a loss per example"
    )


def _difference(a: Tensor, b: Tensor) -> float:
    return float((a.nan_to_num() - b.nan_to_num()).abs().max())
