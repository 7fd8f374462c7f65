"""Losses and accuracies of classes and lanes, from one forward pass over their examples."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from landscape.losses import cross_entropy
from landscape.risk.arithmetic import precise_arithmetic
from landscape.risk.batchnorm import require_batch
from landscape.risk.likelihoods import losses_of

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk


@torch.no_grad()
def class_means(risk: ModelRisk, theta: Tensor, classes: Sequence[int] | None) -> dict[str, Tensor]:
    """Return ``loss``, ``cross_entropy`` and ``accuracy``, each (C,) float64; sums are taken in float64."""
    names = ("loss", "cross_entropy", "accuracy")
    num_classes = len(risk.class_names)
    sums = torch.zeros(len(names), num_classes, dtype=torch.float64, device=risk.device)
    asked = range(num_classes) if classes is None else classes
    wanted = [c for c in asked if risk.class_counts[c] > 0]
    with precise_arithmetic():
        buffers = risk._buffers_at(theta)
        for rows in _rows_of(risk, wanted):
            logits, labels = risk.logits(theta, rows, buffers), risk._examples.labels[rows]
            own = losses_of(risk.loss, logits, labels, risk.loss_name)
            plain = own if risk.loss_name == "ce" else cross_entropy(logits, labels)
            values = torch.stack([own.double(), plain.double(), (logits.argmax(1) == labels).double()])
            sums += values @ functional.one_hot(labels, num_classes).double()
    counts = torch.full((num_classes,), torch.nan, dtype=torch.float64)
    counts[wanted] = risk._examples.counts[wanted].double()
    return dict(zip(names, sums.cpu() / counts))


def _rows_of(risk: ModelRisk, classes: Sequence[int]) -> Iterable[slice]:
    if risk.is_additive:
        return risk._examples.chunks(classes, risk.chunk_size)
    for c in classes:
        require_one_pass(risk, [c])
    return [slice(*risk._examples.offsets[c : c + 2]) for c in classes]


def require_one_pass(risk: ModelRisk, classes: Sequence[int], chunk_size: int | None = None) -> None:
    """Raise LandscapeError where the examples of some classes are no batch, or do not fit one."""
    fits = risk.memory_budget // (2 * risk._bytes_per_example)
    require_batch(
        [risk.class_names[c] for c in classes],
        int(risk._examples.counts[list(classes)].sum()),
        chunk_size or risk._chunk_size or max(risk.chunk_size, fits),
    )


@torch.no_grad()
def lane_means(risk: ModelRisk, theta: Tensor, weights: Tensor) -> Tensor:
    """Return the losses (B,) float64 of lanes (B, C)."""
    if risk.is_additive:
        needed = (weights.cpu() != 0) & (risk.class_counts > 0)  # (B, C)
        losses = risk.losses(theta, torch.nonzero(needed.any(0))[:, 0].tolist())
        return torch.where(needed, weights.double().cpu() * losses, 0.0).sum(1)
    evaluated, chunks = risk._chunks_of(weights)
    out = torch.zeros(len(weights), dtype=torch.float64, device=risk.device)
    with precise_arithmetic():
        for lane, rows, coefficients in chunks:
            out[lane] += evaluated.per_example(theta, rows).double() @ coefficients.double()
    return out.cpu()
