"""Why an evaluation does not repeat, or a product is no Hessian: what can be measured, before anything is guessed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.errors import LandscapeError
from landscape.risk.arithmetic import differentiation, random_states_kept

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

# Calls that may have to pass until two of them differ (a draw that is not always made, a counter).
CALLS = 12
LOWER = (torch.bfloat16, torch.float16)


def why_not_repeated(risk: ModelRisk) -> str | None:
    """Return what makes two evaluations of a risk differ, as measured with forward passes; None where none differ."""
    rows = slice(0, min(8, len(risk.labels)))
    with differentiation(), random_states_kept(risk.device), torch.no_grad():
        before = random_states()
        buffers = {name: value.clone() for name, value in risk._network.buffers.items()}
        outputs, calls = _several_calls(risk, rows)
        draws = drawn_since(before)
        changed = [name for name, value in risk._network.buffers.items() if not _equal(value, buffers[name])]
        first, last = outputs[0], next((o for o in outputs[1:] if not _equal(outputs[0], o)), None)
        if last is None:
            losses = [risk.losses_of(first.clone(), rows) for _ in range(CALLS)]
            if all(_equal(losses[0], other) for other in losses):
                return None
            return f"the loss '{risk.loss_name}' of the same logits differs between two calls, a noisy loss; switch its noise off"
    size = float((first.double() - last.double()).abs().max())
    where = _first_that_differs(calls)
    place = f", first in layer '{where}'" if where else ""
    if changed:
        reason = f"the buffer '{changed[0]}' changes with every call"
        remedy = "keep it fixed in evaluation mode"
    elif draws:
        reason = f"every call draws from the random numbers of {' and '.join(draws)}"
        remedy = "functional dropout, noise or augmentation that evaluation mode does not switch off; switch it off"
    else:
        reason = "no buffer changes and no global random number is drawn"
        remedy = "a counter or other state of the model, or a generator of its own; freeze it in evaluation mode"
    return f"the logits of the same inputs differ by {size:.1e} between two calls{place}: {reason}; {remedy}"


def lower_precision(risk: ModelRisk) -> str | None:
    """Return the name of a precision below float32 in which the model or loss computes, None if there is none."""
    seen = _Precisions()
    rows = slice(0, min(2, len(risk.labels)))
    with differentiation(), random_states_kept(risk.device), torch.no_grad(), seen:
        risk.per_example(risk.theta, rows)
    return next(iter(seen.found), None)


def require_full_precision(risk: ModelRisk, what: str) -> None:
    """Raise LandscapeError that names a lower precision inside the model, if there is one."""
    lower = lower_precision(risk)
    if lower is not None:
        raise LandscapeError(
            f"{what}: the model computes in {lower}, a lower precision inside its forward pass (torch.autocast or a cast there), "
            "whose rounding hides the curvature; leave it out in evaluation mode"
        )


class _Precisions(TorchDispatchMode):
    """Sees every operation and keeps the precisions below float32 of what it returns."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, None] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor) and tensor.dtype in LOWER:
                self.found[str(tensor.dtype).removeprefix("torch.")] = None
        return out


# What the leaves of a network returned in one call, in order: name, inputs, output.
_Call = list[tuple[str, list[Tensor], Tensor]]


def _several_calls(risk: ModelRisk, rows: slice) -> tuple[list[Tensor], list[_Call]]:
    outputs, calls = [], []
    for _ in range(CALLS):
        call: _Call = []
        with _watched(risk._network.module, call.append):
            outputs.append(risk.logits(risk.theta, rows).detach().clone())
        calls.append(call)
    return outputs, calls


@contextmanager
def _watched(module: nn.Module, keep: Callable[[tuple[str, list[Tensor], Tensor]], None]) -> Iterator[None]:
    handles = []

    def watch(name: str, layer: nn.Module) -> None:
        def hook(_: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if isinstance(output, Tensor):
                inputs = [value.detach().clone() for value in args if isinstance(value, Tensor)]
                keep((name, inputs, output.detach().clone()))

        handles.append(layer.register_forward_hook(hook))

    try:
        for name, layer in module.named_modules():
            if name:
                watch(name, layer)
        yield
    finally:
        for handle in handles:
            handle.remove()


def _first_that_differs(calls: list[_Call]) -> str | None:
    """Return the first layer that gives another output for the same inputs."""
    for one, other in itertools.pairwise(calls):
        for (name, inputs, output), (same, others, another) in zip(one, other):
            fits = name == same and len(inputs) == len(others) and all(map(_equal, inputs, others))
            if fits and not _equal(output, another):
                return name
    return None


def random_states() -> dict[str, Any]:
    """Return the states of the global generators."""
    states = {
        "PyTorch": torch.get_rng_state(),
        "NumPy": np.random.get_state(),  # noqa: NPY002  # the global state is the point
        "Python": random.getstate(),
    }
    if torch.cuda.is_available():
        states["CUDA"] = torch.cuda.get_rng_state()
    return states


def drawn_since(before: Mapping[str, Any]) -> list[str]:
    """Return the global generators that have been drawn from since their states were taken."""
    return [name for name, state in random_states().items() if not _same_state(before[name], state)]


def _same_state(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one.nan_to_num(), other.nan_to_num())
