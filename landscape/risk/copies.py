"""The private copy of a caller's network: unwrapped, in one precision, and with nothing left that leads to the caller's."""

from __future__ import annotations

import copy
import types
from collections import OrderedDict, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter

from landscape.errors import LandscapeError, foreign_errors_explained

# How deep in containers a module's activations are looked for.
MOST_NESTED = 4
UNINITIALISED = (UninitializedParameter, UninitializedBuffer)
REGISTERED = ("_parameters", "_buffers", "_modules")


def private_copy(model: nn.Module) -> nn.Module:
    """Return a frozen copy in evaluation mode, with compiled and data-parallel wrappers taken off.

    Raises
    ------
    LandscapeError
        If it is no module, or holds something that is not studied; names it.
    """
    inner: Any = model
    while True:
        if hasattr(inner, "_orig_mod"):  # torch.compile: no double backward through it
            inner = inner._orig_mod
        elif isinstance(inner, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
            inner = inner.module
        else:
            break
    require_plain(inner)
    return copied(inner).eval()


def require_plain(model: Any) -> None:
    """Raise LandscapeError unless this is a module whose weights are real numbers that are there."""
    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}" if isinstance(model, type) else f"a {type(model).__name__}"
        raise LandscapeError(f"expected a model (an instance of torch.nn.Module), got {got}")
    if isinstance(model, torch.jit.ScriptModule):
        raise LandscapeError(
            "the model is a TorchScript module (torch.jit), a program whose weights cannot be exchanged: pass the nn.Module "
            "that it was made of, with its state_dict() loaded"
        )
    for name, weight in model.named_parameters():
        _require(name, "weights", weight, _trouble(weight) or _not_real(weight))
    for name, tensor in model.named_buffers():
        _require(name, "buffer", tensor, _trouble(tensor))
    for name, layer in model.named_modules():
        if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)) and layer.max_norm is not None:
            raise LandscapeError(
                f"the embedding '{name}' rescales its weights in the forward pass (max_norm={layer.max_norm:g}), so its loss is "
                "no function of them: set max_norm to None before it is studied"
            )


def _require(name: str, what: str, tensor: Tensor, trouble: str) -> None:
    if trouble:
        dtype = "" if isinstance(tensor, UNINITIALISED) else f" {tensor.dtype}".replace("torch.", "")
        raise LandscapeError(f"the{dtype} {what} '{name}' {trouble}")


def _trouble(tensor: Tensor) -> str:
    """Return what keeps a tensor from being computed with, if anything."""
    if isinstance(tensor, UNINITIALISED):
        return "are not there yet (a lazy layer): run one batch through the model first"
    if tensor.is_meta:
        return "have no values (meta device): load them first"
    if tensor.is_nested or tensor.layout != torch.strided or tensor.is_quantized:
        return "are sparse, nested or quantised: expected ordinary dense numbers (to_dense, dequantize)"
    return ""


def _not_real(tensor: Tensor) -> str:
    if tensor.is_complex():
        return "are complex: expected real weights; write them as pairs (torch.view_as_real)"
    if not tensor.is_floating_point():
        return "are no floating point numbers, so they have no curvature: register them as a buffer"
    return ""


def copied(model: nn.Module) -> nn.Module:
    """Return a copy that shares no weights with the original, also where hooks, closures or attributes lead to them.

    Tensors that a module keeps (activations, older weight and spectral norms) are copied without their graphs; views of
    weights become views of the copy's; what cannot be copied (a lock) stays shared.

    Raises
    ------
    LandscapeError
        If something that cannot be copied cannot be shared either.
    """
    memo: dict[int, Any] = {}
    advice = "take what holds no weights (hooks, locks, graphs, scripted parts) off it before it is studied"
    with foreign_errors_explained("the model cannot be copied", remedy=lambda: advice):
        owners: dict[int, tuple[Any, Any]] = {}
        for weight in model.parameters():
            if weight.is_leaf:  # those of a scripted part are copied with it
                owners[weight.untyped_storage().data_ptr()] = (weight, copy.deepcopy(weight, memo))
        for layer in model.modules():
            for name, value in vars(layer).items():
                if name not in REGISTERED:
                    _remember(value, memo, owners)
        own = copy.deepcopy(model, memo)
        for layer in own.modules():
            _rebind(vars(layer), memo)
    return own


def cast(model: nn.Module, dtype: torch.dtype, device: torch.device | None = None) -> nn.Module:
    """Bring a private copy to a precision and device, with all that its modules keep outside parameters and buffers.

    Complex buffers stay complex. Weights that are no parameters of the model (modules in a plain list, say) are held fixed.
    """

    def change(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else dtype.to_complex() if tensor.is_complex() else tensor.dtype
        return tensor.to(device=device, dtype=kind)

    owners = {p.untyped_storage().data_ptr(): (name, p.storage_offset()) for name, p in model.named_parameters()}
    views = {}  # how to take what were views of weights from those that come
    for tensor in _kept(model):
        place = tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0
        if place and place in owners:
            name, start = owners[place]
            views[id(tensor)] = name, (tensor.shape, tensor.stride(), tensor.storage_offset() - start)
    model._apply(change)
    known = {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}

    def follow(value: Any, depth: int = 0) -> Any:
        if id(value) in known or depth > MOST_NESTED:
            return value
        if isinstance(value, Tensor):
            name, geometry = views.get(id(value), ("", ()))
            return _view(model.get_parameter(name), *geometry) if name else change(value.detach())
        if isinstance(value, nn.Module):
            return value._apply(change).requires_grad_(False)
        if type(value) is tuple:
            return tuple(follow(entry, depth + 1) for entry in value)
        if type(value) in (dict, OrderedDict, defaultdict, list):
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                value[key] = follow(value[key], depth + 1)
        return value

    for layer in model.modules():
        for name, value in list(vars(layer).items()):
            if name not in REGISTERED and "hooks" not in name:
                vars(layer)[name] = follow(value)
    return model


def weights_elsewhere(model: nn.Module) -> list[str]:
    """Return where a model keeps trainable weights that are none of its parameters: in a plain list, say."""
    known = {id(p) for p in model.parameters()}
    found = []
    for prefix, layer in model.named_modules():
        for name, value in vars(layer).items():
            if name not in REGISTERED and any(
                isinstance(t, Tensor) and t.is_leaf and t.requires_grad and id(t) not in known for t in _tensors(value)
            ):
                found.append(f"{prefix}.{name}" if prefix else name)
    return found


def _kept(model: nn.Module) -> Iterator[Tensor]:
    for layer in model.modules():
        for name, value in vars(layer).items():
            if name not in REGISTERED:
                yield from _tensors(value)


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, nn.Module):
        yield from value.parameters()
    elif isinstance(value, (dict, list, tuple, set)) and depth < MOST_NESTED:
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _tensors(entry, depth + 1)


def _view(weight: Tensor, shape: Any, stride: Any, start: int) -> Tensor:
    return weight.detach().as_strided(shape, stride, weight.storage_offset() + start)


def _remember(value: Any, memo: dict[int, Any], owners: dict[int, tuple[Any, Any]], depth: int = 0) -> None:
    """Enter how to copy what a module keeps."""
    if id(value) in memo:
        return
    if isinstance(value, Tensor):
        place = value.untyped_storage().data_ptr() if value.layout == torch.strided else 0
        weight, own = owners.get(place, (None, value)) if place else (None, value)
        if weight is not None and weight.stride() == own.stride():
            memo[id(value)] = _view(own, value.shape, value.stride(), value.storage_offset() - weight.storage_offset())
        elif not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    elif isinstance(value, (dict, list, tuple, set)) and depth < MOST_NESTED:
        for entry in list(value.values() if isinstance(value, dict) else value):
            _remember(entry, memo, owners, depth + 1)
    elif not isinstance(value, (nn.Module, str, bytes, int, float, bool, type(None))) and not callable(value):
        try:
            copy.deepcopy(value, dict(memo))
        except Exception:  # whatever it is, it is no weight
            memo[id(value)] = value


def _rebind(parts: dict[Any, Any], memo: dict[int, Any], depth: int = 0) -> None:
    """Let functions that a module keeps (hooks, an exchanged forward) close over the copy instead of the original."""
    for name, value in list(parts.items()):
        if isinstance(value, types.FunctionType):
            parts[name] = _rebound(value, memo)
        elif isinstance(value, dict) and name not in REGISTERED and depth == 0:
            _rebind(value, memo, depth + 1)


def _rebound(function: types.FunctionType, memo: dict[int, Any], depth: int = 0) -> types.FunctionType:
    cells = list(function.__closure__ or ())
    changed = False
    for number, cell in enumerate(cells):
        try:
            held = cell.cell_contents
        except ValueError:  # empty
            continue
        if isinstance(held, types.FunctionType) and depth < MOST_NESTED:
            new: Any = _rebound(held, memo, depth + 1)
        elif isinstance(held, (dict, list, set)):
            with suppress(Exception):  # what cannot be copied stays shared
                held = copy.deepcopy(held, memo)
            new = held
        else:
            new = memo.get(id(held), held)
        if new is not cell.cell_contents:
            cells[number], changed = types.CellType(new), True
    if not changed:
        return function
    own = types.FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, tuple(cells)
    )
    own.__kwdefaults__ = function.__kwdefaults__
    own.__dict__.update(function.__dict__)
    return own
