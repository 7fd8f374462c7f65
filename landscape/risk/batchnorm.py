"""What BatchNorm layers normalise by: running statistics, recomputed ones, or those of the batch at hand."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from landscape.errors import LandscapeError, unknown_name
from landscape.risk.inputs import Inputs, call_with, num_rows, rows_of
from landscape.risk.stateless import call_at

BatchNormPolicy = Literal["frozen", "batch", "recalibrate"]

# Statistics are averaged over batches of this size, the usual one of training: what they are depends on it.
CALIBRATION_BATCH = 128


def require_layers(model: nn.Module, policy: str) -> None:
    """Raise LandscapeError for an unknown policy, or one for layers that the model does not have."""
    if policy not in get_args(BatchNormPolicy):
        raise unknown_name("BatchNorm policy", policy, get_args(BatchNormPolicy))
    if policy == "recalibrate" and not _normalisations(model):
        raise LandscapeError("batchnorm 'recalibrate': the model has no BatchNorm statistics; use 'frozen'")
    if policy == "batch" and not batch_normalisations(model):
        raise LandscapeError("batchnorm 'batch': the model has no BatchNorm layer; use 'frozen'")


def require_batch(class_names: Sequence[str], num_examples: int, capacity: int) -> None:
    """Raise LandscapeError where the examples of these classes are no batch to take statistics of."""
    names = ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else "")
    if num_examples == 1:
        raise LandscapeError(
            f"batchnorm 'batch': a lane (class {names}) has a single example, which has no variance; leave the class out, "
            "or use 'frozen'"
        )
    if num_examples > capacity:
        raise LandscapeError(
            f"batchnorm 'batch': a lane of {num_examples} examples (class {names}) does not fit one pass of {capacity}; "
            "take fewer examples per class, raise the memory budget or chunk_size, or use 'frozen'"
        )


def describe(policy: BatchNormPolicy, num_calibration: int) -> str:
    """Return what a result records."""
    if policy == "recalibrate":
        batch = min(num_calibration, CALIBRATION_BATCH)
        return f"recalibrated on {num_calibration} examples in batches of {batch} at every point"
    return {"frozen": "frozen", "batch": "statistics of each lane's own examples"}[policy]


def _normalisations(model: nn.Module) -> dict[str, _NormBase]:
    return {
        name: layer
        for name, layer in model.named_modules()
        if isinstance(layer, _NormBase) and layer.running_mean is not None
    }


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


def calibration_batches(stored: Inputs) -> list[Inputs]:
    """Return stored inputs (M, ...) in batches of at most ``CALIBRATION_BATCH``.

    Strided: the examples may be sorted by class, and every batch must hold them all in (nearly) equal shares.
    """
    num_batches = -(-num_rows(stored) // CALIBRATION_BATCH)
    return [rows_of(stored, slice(start, None, num_batches)) for start in range(num_batches)]


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
            call_with(lambda *args, **named: call_at(model, {**parameters, **buffers}, args, named), batch)
    finally:
        for layer, momentum, mode in zip(layers.values(), momenta, modes):
            layer.momentum = momentum
            layer.train(mode)
    return buffers
