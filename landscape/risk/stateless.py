"""Calls of a module with other tensors in the place of its own, each put in its place once and taken out again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.func import functional_call

# The other places of a module's tied tensors, {name: first name}, while it lives.
_PLACES: WeakKeyDictionary[nn.Module, dict[str, str]] = WeakKeyDictionary()


def call_at(module: nn.Module, tensors: Mapping[str, Tensor], args: Any, named: Any) -> Any:
    """Return ``module(*args, **named)`` with parameters and buffers by name in the place of its own.

    Tied tensors go to all their places. PyTorch's own way of doing so takes a module that stands at two places (the
    same layer twice) for two, swaps twice, and leaves the stranger's tensors in it.
    """
    if module not in _PLACES:
        _PLACES[module] = _other_places(module)
    tied = {name: tensors[first] for name, first in _PLACES[module].items() if first in tensors}
    return functional_call(module, {**tied, **tensors}, args, named, tie_weights=False)


def _other_places(module: nn.Module) -> dict[str, str]:
    first_name: dict[int, str] = {}
    seen: set[tuple[int, str]] = set()
    found: dict[str, str] = {}
    for prefix, owner in module.named_modules(remove_duplicate=False):
        for name, tensor in (*owner._parameters.items(), *owner._buffers.items()):
            place = id(owner), name
            if tensor is None or place in seen:  # a module that stands elsewhere too
                continue
            seen.add(place)
            full = f"{prefix}.{name}" if prefix else name
            if id(tensor) in first_name:
                found[full] = first_name[id(tensor)]
            else:
                first_name[id(tensor)] = full
    return found
