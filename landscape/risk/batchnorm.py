"""BatchNorm statistics recomputed at perturbed weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase


def _normalisations(model: nn.Module) -> dict[str, _NormBase]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
    }


def has_running_statistics(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics that could be recomputed."""
    return bool(_normalisations(model))


@torch.no_grad()
def recalibrate(model: nn.Module, parameters: Mapping[str, Tensor], batches: Iterable[Tensor]) -> dict[str, Tensor]:
    """Return the buffers that ``model`` has at ``parameters`` after its BatchNorm statistics were recomputed.

    The cumulative average over fixed batches of equal weight, as :func:`torch.optim.swa_utils.update_bn` computes it,
    but with every other layer (dropout) left in its own mode, so that nothing random enters. The model's own
    parameters and buffers stay as they are.
    """
    layers = _normalisations(model)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for name in layers:
        prefix = f"{name}." if name else ""
        buffers[f"{prefix}running_mean"].zero_()
        buffers[f"{prefix}running_var"].fill_(1)
        buffers[f"{prefix}num_batches_tracked"].zero_()
    momenta = [layer.momentum for layer in layers.values()]
    modes = [layer.training for layer in layers.values()]
    for layer in layers.values():
        layer.momentum = None  # cumulative average
        layer.train()
    try:
        for batch in batches:
            functional_call(model, {**parameters, **buffers}, (batch,))  # writes the statistics into ``buffers``
    finally:
        for layer, momentum, mode in zip(layers.values(), momenta, modes):
            layer.momentum = momentum
            layer.train(mode)
    return buffers
