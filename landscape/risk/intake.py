"""What a network must be before it is studied: unwrapped, finite, and a map from inputs to logits."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.losses import build_loss
from landscape.risk.arithmetic import plain_checkpointing
from landscape.risk.batchnorm import describe
from landscape.risk.examples import Transform, as_model_inputs
from landscape.risk.inputs import Inputs, call_with, choose_output, logits_in, num_rows, rows_of, shape_of

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

# How deep in containers a module's activations are looked for.
MOST_NESTED = 4

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
    memo: dict[int, Any] = {}
    for layer in model.modules():
        for name, value in vars(layer).items():
            if name not in ("_parameters", "_buffers", "_modules"):
                _remember(value, memo)
    try:
        return copy.deepcopy(model, memo)
    except (TypeError, RuntimeError, ValueError, AttributeError, NotImplementedError) as error:
        first_line = str(error).splitlines()[0]
        raise LandscapeError(
            f"the model cannot be copied ({first_line}): take what holds no weights (hooks, locks, graphs, scripted parts) off "
            "it before it is studied"
        ) from error


def _remember(value: Any, memo: dict[int, Any], depth: int = 0) -> None:
    """Enter how to copy what a module keeps: tensors without their graphs; what cannot be copied (a lock) stays shared."""
    if isinstance(value, Tensor):
        if not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif isinstance(value, (dict, list, tuple, set)) and depth < MOST_NESTED:
        for entry in list(value.values() if isinstance(value, dict) else value):
            _remember(entry, memo, depth + 1)
    elif not isinstance(value, (nn.Module, str, bytes, int, float, bool, type(None))) and not callable(value):
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:  # whatever it is, it is no weight
            memo[id(value)] = value


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
def first_attributes(risk: ModelRisk, params: str) -> dict[str, object]:
    """Return what every result of a network's risk records."""
    return {
        "objective": risk.loss_name,
        "dtype": str(risk.dtype).removeprefix("torch."),
        "device": risk.device.type,
        "parameters": params,
        "num_parameters": risk.layout.num_parameters,
        "batchnorm": describe(risk.policy, num_rows(risk._calibration)),
    }


def count_outputs(
    model: nn.Module, stored: Inputs, transform: Transform | None, dtype: torch.dtype, classes: int | Sequence[str]
) -> tuple[int, int | str | None]:
    """Return the number of logits of stored inputs, and which entry of the output they are; LandscapeError if the model does
    not take the inputs or return logits."""
    inputs = as_model_inputs(stored, transform, dtype)
    try:
        with plain_checkpointing():
            output = call_with(model, inputs)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        first_line = str(error).splitlines()[0]
        raise LandscapeError(
            f"the model does not accept inputs of shape {shape_of(rows_of(inputs, slice(0, 1)))}: {first_line}"
        ) from error
    num_classes = classes if isinstance(classes, int) else len(classes)
    which = choose_output(output, num_classes, num_rows(inputs))
    logits = logits_in(output, which)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = str((1, *logits.shape[1:])) if isinstance(logits, Tensor) else type(logits).__name__
        raise LandscapeError(f"expected logits (batch, classes) from the model, got {got}")
    return logits.shape[1], which


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
