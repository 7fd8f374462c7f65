"""What BatchNorm layers normalise by: running statistics, recomputed ones, or those of the batch at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from landscape.risk.inputs import Inputs, call_with


def _normalisations(model: nn.Module) -> dict[str, _NormBase]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
    }


def has_running_statistics(model: nn.Module) -> bool:
    """Whether any layer keeps running statistics that could be recomputed."""
    return bool(_normalisations(model))


def batch_normalisations(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorm layers by name; they mix the examples of a batch where they use its own statistics."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)}


@contextmanager
def batch_statistics(layers: Sequence[_BatchNorm]) -> Iterator[None]:
    """Let BatchNorm layers use the statistics of the batch, and neither read nor write their running ones."""
    modes = [(layer.training, layer.track_running_stats) for layer in layers]
    try:
        for layer in layers:
            layer.training, layer.track_running_stats = True, False
        yield
    finally:
        for layer, (training, is_tracking) in zip(layers, modes):
            layer.training, layer.track_running_stats = training, is_tracking


@torch.no_grad()
def recalibrate(model: nn.Module, parameters: Mapping[str, Tensor], batches: Iterable[Inputs]) -> dict[str, Tensor]:
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
            # Writes the statistics into ``buffers``.
            call_with(lambda *args, **named: functional_call(model, {**parameters, **buffers}, args, named), batch)
    finally:
        for layer, momentum, mode in zip(layers.values(), momenta, modes):
            layer.momentum = momentum
            layer.train(mode)
    return buffers
