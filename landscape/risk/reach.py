"""Which of the chosen parameters the loss reaches: a cut graph leaves weights without curvature, and says nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.func import functional_call

from landscape.errors import LandscapeError
from landscape.risk.arithmetic import differentiation, plain_checkpointing, plain_recurrence
from landscape.risk.inputs import call_with, logits_in
from landscape.risk.proof import few_of

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

logger = logging.getLogger(__name__)

# A tensor that the loss does not reach is moved by this share of its size: a loss that then changes depends on it.
SHARE = 0.1
SHOWN = 4


def unreached(risk: ModelRisk) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the chosen tensors that a cut graph hides from derivatives, and as attribute those the loss does not depend on.

    A tensor is reached if a gradient of a few examples of each class leads to it. One that is not, but changes the loss
    when it is moved, is cut off: by ``no_grad``, ``detach``, NumPy or a hook. Losses are right all the same.
    """
    few = few_of(risk)
    with differentiation():
        missed = _missed(few)
        cut = [name for name in missed if _changes_the_loss(few, name)]
    unused = [name for name in missed if name not in cut]
    if unused:
        logger.warning("the loss does not depend on %s: no curvature belongs to them", _listed(unused))
    return tuple(cut), {"unused_parameters": ", ".join(unused)} if unused else {}


def require_whole(cut: Sequence[str]) -> None:
    """Raise LandscapeError if tensors are cut off from the loss."""
    if cut:
        raise LandscapeError(
            f"the graph from the loss to {_listed(cut)} is cut (torch.no_grad, detach, NumPy or a hook in the model), although "
            "the loss depends on them: their curvature would be zero without being so. Let gradients through, or choose "
            "--params (params=) that the graph reaches"
        )


def _missed(few: ModelRisk) -> list[str]:
    network = few._network
    leaves = {name: t.detach().clone().requires_grad_() for name, t in network.parameters_at(few.theta).items()}
    names = list(network.layout.names)
    rows = slice(0, len(few.labels))
    inputs = few._examples.read(rows, few.dtype)
    tensors = {**network.buffers, **leaves}
    with plain_checkpointing(), plain_recurrence():
        output = call_with(lambda *args, **named: functional_call(network.module, tensors, args, named), inputs)
        losses = few.losses_of(logits_in(output, network.output), rows)
    if not losses.requires_grad:
        return names
    found = torch.autograd.grad(losses.sum(), [leaves[name] for name in names], allow_unused=True)
    return [name for name, gradient in zip(names, found) if gradient is None]


@torch.no_grad()
def _changes_the_loss(few: ModelRisk, name: str) -> bool:
    before = few.lane_losses(few.theta, _pooled(few))
    parts = {key: value.clone() for key, value in few.layout.named(few.theta).items()}
    size = float(parts[name].double().square().mean().sqrt()) or 1.0
    steps = torch.linspace(-1, 1, parts[name].numel(), dtype=few.dtype, device=few.device).view(parts[name].shape)
    parts[name] = parts[name] * (1 + SHARE) + SHARE * size * steps
    moved = few.lane_losses(few.layout.flatten(list(parts.values())), _pooled(few))
    return bool((moved - before).abs().max() > 1e-9 * before.abs().max())


def _pooled(few: ModelRisk) -> Tensor:
    return (few.class_counts / few.class_counts.sum())[None]


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:SHOWN])
    return shown + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")
