"""The proof that a risk is a function: the same weights give the same losses and gradients, however it is evaluated."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import torch

from landscape.errors import LandscapeError

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

# Examples per class and in all that the proof evaluates: enough to meet every layer, cheap beside any analysis.
PER_CLASS = 4
IN_ALL = 64
# Another chunking may change the order of sums, not the value: relative tolerance by precision.
CHUNKING_TOLERANCE = {torch.float32: 2e-3, torch.float64: 1e-8}


def prove_deterministic(risk: ModelRisk) -> None:
    """Evaluate loss and gradient twice and once in chunks of one example; refuse a risk where they differ.

    Raises
    ------
    LandscapeError
        Naming the likely cause: dropout or noise that evaluation mode does not switch off, or a layer that mixes the
        examples of a batch.
    """
    offsets = risk._examples.offsets
    rows = [torch.arange(a, min(a + PER_CLASS, b)) for a, b in itertools.pairwise(offsets)]
    few = risk.restricted(torch.cat(rows)[:IN_ALL])
    few._chunk_size = None
    weights = (few.class_counts / few.class_counts.sum())[None]
    devices = [risk.device] if risk.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        first = (few.losses(few.theta), few.gradients(few.theta, weights))
        again = (few.losses(few.theta), few.gradients(few.theta, weights))
        few._chunk_size = 1
        split = (few.losses(few.theta), few.gradients(few.theta, weights))
    # Some CUDA kernels add in any order; on a CPU the bits must agree.
    allowed = 1e-5 if risk.device.type == "cuda" else 0.0
    for name, a, b in zip(("loss", "gradient"), first, again):
        if _difference(a, b) > allowed * float(a.nan_to_num().abs().max()):
            raise LandscapeError(
                f"two evaluations of the {name} at the same weights differ by {_difference(a, b):.1e}: the model or loss "
                "draws noise in evaluation mode (functional dropout, augmentation, a noisy loss); switch it off"
            )
    tolerance = CHUNKING_TOLERANCE.get(risk.dtype, 2e-2)
    for name, a, b in zip(("loss", "gradient"), first, split):
        scale = float(a.nan_to_num().abs().max()) + 1e-6
        if _difference(a, b) > tolerance * scale:
            raise LandscapeError(
                f"the {name} depends on how the examples are batched (by {_difference(a, b) / scale:.1e} relative): a layer "
                "mixes examples (BatchNorm without running statistics?); use one with frozen statistics"
            )
    if not bool(first[0][few.class_counts > 0].isfinite().all()):
        raise LandscapeError(f"the loss '{risk.loss_name}' is not finite at the given weights")


def _difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a.nan_to_num() - b.nan_to_num()).abs().max())
