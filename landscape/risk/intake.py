"""What a network must be before it is studied: unwrapped, finite, and a map from inputs to logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.risk.arithmetic import plain_checkpointing
from landscape.risk.examples import Transform, as_model_inputs
from landscape.risk.inputs import Inputs, call_with, logits_in, rows_of, shape_of

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]


def private_copy(model: nn.Module) -> nn.Module:
    """Return a frozen copy in evaluation mode, with compiled and data-parallel wrappers taken off."""
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):  # torch.compile: no double backward through it
            inner = inner._orig_mod
        elif isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        else:
            break
    return copied(inner).eval()


def copied(model: nn.Module) -> nn.Module:
    """Return a copy; tensors that hooks left in it (older weight and spectral norms) are copied without their graphs."""
    derived = [value for layer in model.modules() for value in vars(layer).values() if isinstance(value, Tensor)]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in derived if not value.is_leaf})


def require_finite(model: nn.Module) -> None:
    """Raise LandscapeError that names the first weight or buffer that is not finite."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise LandscapeError(
                f"the weights are not finite: '{name}' holds {bad} NaN or infinite entries of {tensor.numel()}; "
                "the training diverged or the file is damaged"
            )


def study_dtype(model: nn.Module, dtype: torch.dtype | None) -> torch.dtype:
    """Return the precision to compute in, by default the model's own; LandscapeError if it would hide the curvature."""
    first = next(model.parameters(), None)
    if first is None:
        raise LandscapeError("the model has no parameters: there is no weight space to study")
    dtype = dtype if dtype is not None else first.dtype
    if dtype not in (torch.float32, torch.float64):
        raise LandscapeError(
            f"expected float32 or float64, got a model in {dtype}: its rounding would hide the curvature; "
            "pass dtype=torch.float32"
        )
    return dtype


def names_of(num_outputs: int, class_names: Sequence[str] | None) -> tuple[str, ...]:
    """Return the classes' names, by default their numbers; LandscapeError if there are not as many as outputs."""
    names = tuple(class_names) if class_names is not None else tuple(map(str, range(num_outputs)))
    if len(names) != num_outputs:
        raise LandscapeError(
            f"wrong number of classes: the model has {num_outputs} outputs, the data set {len(names)} classes"
        )
    return names


@torch.no_grad()
def count_outputs(model: nn.Module, stored: Inputs, transform: Transform | None, dtype: torch.dtype) -> int:
    """Return the number of logits of stored inputs; LandscapeError if the model does not take them or return logits."""
    inputs = as_model_inputs(stored, transform, dtype)
    try:
        with plain_checkpointing():
            logits = logits_in(call_with(model, inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first_line = str(error).splitlines()[0]
        raise LandscapeError(
            f"the model does not accept inputs of shape {shape_of(rows_of(inputs, slice(0, 1)))}: {first_line}"
        ) from error
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = str((1, *logits.shape[1:])) if isinstance(logits, Tensor) else type(logits).__name__
        raise LandscapeError(f"expected logits (batch, classes) from the model, got {got}")
    return logits.shape[1]


def resolve_loss(
    loss: str | PerExampleLoss, class_counts: Sequence[int], *, device: torch.device, dtype: torch.dtype
) -> tuple[str, PerExampleLoss]:
    """Return a loss's name and the loss itself; a module comes back as a copy in evaluation mode."""
    if isinstance(loss, str):
        name = loss
        loss = build_loss(loss, class_counts)
    else:
        name = str(getattr(loss, "name", None) or getattr(loss, "__name__", type(loss).__name__))
    if isinstance(loss, nn.Module):
        loss = copy.deepcopy(loss).eval().to(device=device)
    return name, loss_in(dtype, loss)


def loss_in(dtype: torch.dtype, loss: PerExampleLoss) -> PerExampleLoss:
    """Return a loss whose constants are those given, rounded once to a precision: back from float32 they would be others."""
    if not isinstance(loss, nn.Module):
        return loss
    (given,) = getattr(loss, "given_as", (loss,))
    cast = copy.deepcopy(given).to(dtype)
    cast.given_as = (given,)  # in a tuple, which keeps it out of the module's parts
    return cast
