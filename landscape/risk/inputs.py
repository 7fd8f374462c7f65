"""What a model is fed: one tensor, or named tensors that a language model, say, takes as keywords."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.data import DiskImages
from landscape.errors import LandscapeError, cause

Inputs = Tensor | dict[str, Tensor]
Stored = Inputs | DiskImages  # from which inputs are read


def as_inputs(value: Any) -> Stored:
    """Return tensors (N, ...) of an array, or of a mapping from keyword to array; LandscapeError where N differs.

    Images on disk stay there.
    """
    if isinstance(value, DiskImages):
        return value
    if not isinstance(value, Mapping):
        return _as_tensor(value, "inputs")
    tensors = {str(name): _as_tensor(entry, f"input '{name}'") for name, entry in value.items()}
    if not tensors:
        raise LandscapeError("the inputs are an empty mapping: expected at least one tensor (N, ...)")
    if len({t.shape[:1] for t in tensors.values()}) > 1 or any(t.dim() == 0 for t in tensors.values()):
        raise LandscapeError(f"inputs: expected the same number of examples in every entry, got {shape_of(tensors)}")
    return tensors


def _as_tensor(value: Any, what: str) -> Tensor:
    """Return a dense tensor (N, ...) without a graph."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(entry, Tensor) for entry in value):
        shapes = sorted({tuple(entry.shape) for entry in value})
        if len(shapes) > 1:
            raise LandscapeError(
                f"{what}: expected examples of one shape, got {shapes[0]} and {shapes[-1]}; pad the examples to one shape"
            )
        value = torch.stack(list(value))
    try:
        if isinstance(value, (list, tuple)) and all(isinstance(entry, np.ndarray) for entry in value):
            value = np.asarray(value)
        tensor = torch.as_tensor(value).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise LandscapeError(
            f"{what}: expected a tensor (N, ...), got {type(value).__name__} ({cause(error)}); pad the examples to one shape"
        ) from error
    if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or tensor.is_quantized:
        raise LandscapeError(
            f"{what}: expected a dense tensor (N, ...) with values, got one that is sparse, nested, quantised or meta"
        )
    return tensor


def rows_of(inputs: Stored, rows: slice | Tensor) -> Inputs:
    """Return some rows of the inputs; images on disk are decoded."""
    return {name: t[rows] for name, t in inputs.items()} if isinstance(inputs, dict) else inputs[rows]


def taken(inputs: Stored, rows: Tensor) -> Stored:
    """Return some rows of the inputs in a given order; images on disk stay there."""
    return inputs.take(rows) if isinstance(inputs, DiskImages) else rows_of(inputs, rows)


def num_rows(inputs: Stored) -> int:
    """Return N."""
    return len(next(iter(inputs.values()))) if isinstance(inputs, dict) else len(inputs)


def num_entries(inputs: Stored) -> int:
    """Return the numbers in one row."""
    return sum(math.prod(t.shape[1:]) for t in (inputs.values() if isinstance(inputs, dict) else (inputs,)))


def moved(inputs: Stored, device: torch.device) -> Any:
    """Return the inputs on a device; images on disk are read onto it."""
    return {name: t.to(device) for name, t in inputs.items()} if isinstance(inputs, dict) else inputs.to(device)


def held(inputs: Stored, device: torch.device) -> Stored:
    """Return the inputs on a device; images on disk are decoded at once if all of them fit, else whenever they are read."""
    return inputs.held(device) if isinstance(inputs, DiskImages) else moved(inputs, device)


def joined(batches: Sequence[Stored]) -> Inputs:
    """Return the batches' rows one after the other; LandscapeError where their examples differ in shape or names."""
    first = batches[0]
    for number, batch in enumerate(batches[1:], start=2):
        if _example_of(batch) != _example_of(first):
            raise LandscapeError(
                f"batch {number} holds inputs {shape_of(batch)}, the first {shape_of(first)}: expected examples of one shape; pad "
                "all batches to one length (the loader's collate function)"
            )
    if not isinstance(first, dict):
        return torch.cat([batch for batch in batches if isinstance(batch, Tensor)])
    return {name: torch.cat([batch[name] for batch in batches if isinstance(batch, dict)]) for name in first}


def _example_of(inputs: Stored) -> dict[str, tuple[int, ...]]:
    """Return the shape of one example by name."""
    return {name: tuple(t.shape[1:]) for name, t in (inputs.items() if isinstance(inputs, dict) else [("", inputs)])}


def shape_of(inputs: Stored) -> str:
    """Return the shapes, for messages."""
    if not isinstance(inputs, dict):
        return str(tuple(inputs.shape))
    return ", ".join(f"{name} {tuple(t.shape)}" for name, t in inputs.items())


def call_with(function: Callable[..., Any], inputs: Inputs) -> Any:
    """Call a model with its tensor, or with its named tensors as keywords."""
    return function(**inputs) if isinstance(inputs, dict) else function(inputs)


def logits_in(output: Any, which: int | str | None = None) -> Any:
    """Return the logits of a model's output: the tensor itself, its ``logits``, or the entry ``which`` of a collection."""
    if isinstance(output, Tensor):
        return output
    if which is not None:
        is_collection = isinstance(output, (Mapping, tuple, list))
        return output[which] if is_collection else getattr(output, str(which))
    return output


def choose_output(output: Any, num_classes: int, num_rows: int) -> int | str | None:
    """Return which entry of a model's output holds its logits; None for a tensor.

    ``.logits`` or the entry ``"logits"`` are taken by their name; else the one entry (B, C) with as many columns as there
    are classes, or the only one with two dimensions.

    Raises
    ------
    LandscapeError
        With the list of entries, where none or several would do.
    """
    if isinstance(output, Tensor):
        return None
    if isinstance(output, Mapping):
        entries: dict[int | str, Any] = dict(output)
    elif isinstance(output, (tuple, list)):
        names = getattr(output, "_fields", None)
        entries = dict(enumerate(output))
        if names and "logits" in names:
            return int(names.index("logits"))
    else:
        entries = {"logits": output.logits} if getattr(output, "logits", None) is not None else {}
    if isinstance(entries.get("logits"), Tensor):
        return "logits"
    planes = {
        key: entry
        for key, entry in entries.items()
        if isinstance(entry, Tensor) and entry.dim() == 2 and len(entry) == num_rows
    }
    fitting = [key for key, entry in planes.items() if entry.shape[1] == num_classes]
    if len(fitting) == 1:
        return fitting[0]
    if len(planes) == 1 and not fitting:
        return next(iter(planes))
    found = ", ".join(f"{key!r}: {_described(entry)}" for key, entry in entries.items()) or type(output).__name__
    raise LandscapeError(
        f"expected logits (batch, {num_classes}) from the model, got several outputs or none that fit ({found}): wrap the "
        "model in one that returns its logits alone"
    )


def _described(entry: Any) -> str:
    return f"tensor {tuple(entry.shape)}" if isinstance(entry, Tensor) else type(entry).__name__
