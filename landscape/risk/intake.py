"""What a network must be before it is studied: unwrapped, finite, and a map from inputs to logits."""

from __future__ import annotations

import copy
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from landscape.errors import MOST, LandscapeError, foreign_errors_explained, require_whole
from landscape.losses import build_loss
from landscape.risk.arithmetic import created_in, plain_checkpointing
from landscape.risk.batchnorm import describe
from landscape.risk.copies import cast, private_copy, weights_elsewhere
from landscape.risk.examples import Transform, as_model_inputs
from landscape.risk.inputs import Inputs, call_with, choose_output, logits_in, num_rows, rows_of, shape_of

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

logger = logging.getLogger(__name__)

PerExampleLoss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def intake_explained() -> Iterator[None]:
    """Give the border of intake: whatever a caller's model, loss or data raise is one line."""
    with foreign_errors_explained("the model, its loss or the data cannot be studied"):
        yield


def require_counts(**given: Any) -> None:
    """Raise LandscapeError unless options are whole numbers, at least 1 (0 for a budget), or None."""
    for name, value in given.items():
        is_budget = name == "memory_budget"
        if value is not None:
            require_whole(name, value, 0 if is_budget else 1, sys.maxsize if is_budget else MOST)


def prepared(model: nn.Module, dtype: torch.dtype | str | None, device: torch.device | str | None) -> nn.Module:
    """Return a frozen copy in evaluation mode, in the precision and on the device of the study.

    Raises
    ------
    LandscapeError
        If it is no module, holds weights that are no finite real numbers, or cannot be copied.
    """
    own = private_copy(model)
    elsewhere = weights_elsewhere(own)
    if elsewhere:
        logger.warning(
            "the model keeps trainable weights that are none of its parameters (%s): they are held fixed; register them "
            "(nn.ModuleList, nn.ParameterList) if they belong to it",
            ", ".join(elsewhere),
        )
    first = next(own.parameters(), None)
    cast(
        own,
        study_dtype(own, dtype),
        torch.device(device) if device is not None else first.device if first is not None else None,
    )
    require_finite(own)
    return own


def place_of(model: nn.Module) -> tuple[torch.dtype, torch.device]:
    """Return the precision and the device of a prepared model."""
    first = next(model.parameters())
    return first.dtype, first.device


def require_finite(model: nn.Module) -> None:
    """Raise LandscapeError that names the first weight or buffer that is not finite."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            bad = int((~tensor.isfinite()).sum())
            raise LandscapeError(
                f"the weights are not finite: '{name}' holds {bad} NaN or infinite entries of {tensor.numel()}; "
                "the training diverged or the file is damaged"
            )


def study_dtype(model: nn.Module, dtype: torch.dtype | str | None) -> torch.dtype:
    """Return the precision to compute in, by default the model's own; LandscapeError if it would hide the curvature."""
    first = next(model.parameters(), None)
    if first is None:
        raise LandscapeError("the model has no parameters: there is no weight space to study")
    if isinstance(dtype, str):
        dtype = getattr(torch, dtype, None)
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
    with foreign_errors_explained(f"the transform fails on stored inputs {shape_of(rows_of(stored, slice(0, 1)))}"):
        inputs = as_model_inputs(stored, transform, dtype)
    shape = shape_of(rows_of(inputs, slice(0, 1)))
    foreign = foreign_errors_explained(f"the model does not accept inputs of shape {shape}")
    with foreign, plain_checkpointing(), created_in(dtype):
        output = call_with(model, inputs)
    num_classes = classes if isinstance(classes, int) else len(classes)
    which = choose_output(output, num_classes, num_rows(inputs))
    logits = logits_in(output, which)
    if not isinstance(logits, Tensor) or logits.dim() != 2:
        got = str((1, *logits.shape[1:])) if isinstance(logits, Tensor) else type(logits).__name__
        raise LandscapeError(f"expected logits (batch, classes) from the model, got {got}")
    if not logits.is_floating_point():
        raise LandscapeError(f"expected logits in floating point numbers from the model, got {logits.dtype}")
    if (
        logits.shape[1] > 1
        and bool((logits >= 0).all())
        and torch.allclose(logits.sum(1), logits.new_ones(()), atol=1e-4)
    ):
        logger.warning(
            "the model's outputs look like probabilities, and are taken for logits: leave out its last softmax"
        )
    return logits.shape[1], which


def resolve_loss(
    loss: str | PerExampleLoss, class_counts: Sequence[int], *, device: torch.device, dtype: torch.dtype
) -> tuple[str, PerExampleLoss]:
    """Return a loss's name and the loss itself; a module comes back as a copy in evaluation mode."""
    if isinstance(loss, str):
        name = loss
        loss = build_loss(loss, class_counts)
    else:
        if not callable(loss):
            raise LandscapeError(
                f"loss: expected a name or a callable (logits, labels) -> (B,), got {type(loss).__name__}"
            )
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
