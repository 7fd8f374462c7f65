"""Which of the chosen parameters the loss reaches: a cut graph leaves weights without curvature, and says nothing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk.arithmetic import differentiation
from landscape.risk.custom import pooled
from landscape.risk.proof import few_of
from landscape.risk.slopes import listed, wrong_slope

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

logger = logging.getLogger(__name__)

# A tensor that the loss does not reach is moved by this share of its size: a loss that then changes depends on it.
SHARE = 0.1
# A loss that changes by more than this many units of rounding has changed.
CHANGED_EPS = 100.0
SHOWN = 4


def examined(risk: ModelRisk) -> tuple[str, dict[str, str]]:
    """Return why a risk has no true derivatives, "" if it has, and as attribute the tensors that its loss does not depend on.

    A tensor is reached if a gradient of a few examples of each class leads to it. One that is not, but changes the loss
    when it is moved, is cut off: by ``no_grad``, ``detach``, NumPy or a hook. Losses are right all the same.

    Raises
    ------
    LandscapeError
        If the model reads chosen tensors by another way than as its parameters, or the loss depends on none of them.
    """
    few = few_of(risk)
    few._chunk_size = None
    with differentiation():
        _require_one_way(few)
        missed = _missed(few)
        cut = [name for name in missed if _changes_the_loss(few, name)]
        unused = [name for name in missed if name not in cut]
        if len(unused) == len(list(few._model.parameters())):  # of a part that was chosen it may be so
            raise LandscapeError(
                f"the loss depends on none of the chosen parameters ({listed(unused)}): the model computes without them, or "
                "with weights of its own elsewhere"
            )
        flaw = _cut_off(cut) if cut else "" if risk._custom else wrong_slope(few)
    if unused:
        logger.warning("the loss does not depend on %s: no curvature belongs to them", listed(unused))
    return flaw, {"unused_parameters": ", ".join(unused)} if unused else {}


def _cut_off(cut: Sequence[str]) -> str:
    return (
        f"the graph from the loss to {listed(cut)} is cut (torch.no_grad, detach, NumPy or a hook in the model), although "
        "the loss depends on them: their curvature would be zero without being so. Let gradients through, or choose "
        "--params (params=) that the graph reaches"
    )


@torch.no_grad()
def _require_one_way(few: ModelRisk) -> None:
    """Raise LandscapeError if the loss at given weights depends on the module's own: an attribute, a list, a closure holds them."""
    held = {name: p for name, p in few._model.named_parameters() if name in few.layout.names}
    before = few.lane_losses(few.theta, pooled(few))

    def depends_on(names: Sequence[str]) -> bool:
        kept = {name: held[name].detach().clone() for name in names}
        try:
            for name in names:
                held[name].mul_(1 + SHARE).add_(SHARE * _size(kept[name]))
            return _differs(few.lane_losses(few.theta, pooled(few)), before, few.dtype)
        finally:
            for name in names:
                held[name].copy_(kept[name])

    if depends_on(list(held)):
        names = [name for name in held if depends_on([name])] or list(held)
        raise LandscapeError(
            f"the model reads {listed(names)} by another way than as its parameters (an attribute, a list or a closure holds "
            "them), so it would not see changes of the weights: let its forward pass use the parameters themselves"
        )


def _missed(few: ModelRisk) -> list[str]:
    network = few._network
    leaves = {name: t.detach().clone().requires_grad_() for name, t in network.parameters_at(few.theta).items()}
    names = list(network.layout.names)
    rows = slice(0, len(few.labels))
    inputs = few._examples.read(rows, few.dtype)
    losses = few.losses_of(network.logits_with({**network.buffers, **leaves}, inputs), rows)
    if not losses.requires_grad:
        return names
    found = torch.autograd.grad(losses.sum(), [leaves[name] for name in names], allow_unused=True)
    return [name for name, gradient in zip(names, found) if gradient is None]


@torch.no_grad()
def _changes_the_loss(few: ModelRisk, name: str) -> bool:
    before = few.lane_losses(few.theta, pooled(few))
    parts = {key: value.clone() for key, value in few.layout.named(few.theta).items()}
    steps = torch.linspace(-1, 1, parts[name].numel(), dtype=few.dtype, device=few.device).view(parts[name].shape)
    parts[name] = parts[name] * (1 + SHARE) + SHARE * _size(parts[name]) * steps
    moved = few.lane_losses(few.layout.flatten(list(parts.values())), pooled(few))
    return _differs(moved, before, few.dtype)


def _size(tensor: Tensor) -> float:
    return (float(tensor.double().square().mean().sqrt()) if tensor.numel() else 0.0) or 1.0


def _differs(a: Tensor, b: Tensor, dtype: torch.dtype) -> bool:
    return bool((a - b).abs().max() > CHANGED_EPS * torch.finfo(dtype).eps * b.abs().max())
