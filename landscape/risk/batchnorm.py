"""BatchNorm statistics recomputed at perturbed weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase


def has_running_statistics(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics that could be recomputed."""
    return any(isinstance(m, _NormBase) and m.running_mean is not None for m in model.modules())


@torch.no_grad()
def recalibrate(model: nn.Module, batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the buffers that ``model`` has after its BatchNorm statistics were recomputed over fixed batches.

    The cumulative average over batches of equal weight, as :func:`torch.optim.swa_utils.update_bn` computes it, but
    with every other layer (dropout) left in its own mode, so that nothing random enters. The model must be a private
    copy; its buffers are changed in place.
    """
    layers = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
    momenta = [layer.momentum for layer in layers]
    modes = [layer.training for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # type: ignore[assignment]  # cumulative average
        layer.train()
    try:
        for batch in batches:
            model(batch)
    finally:
        for layer, momentum, mode in zip(layers, momenta, modes):
            layer.momentum = momentum
            layer.train(mode)
    return {name: buffer.clone() for name, buffer in model.named_buffers()}
