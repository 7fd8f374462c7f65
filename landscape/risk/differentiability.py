"""Operations without a derivative, found before the work starts and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import Node

from landscape.errors import LandscapeError
from landscape.risk.arithmetic import differentiation, random_states_kept

# PyTorch's wording for a kernel without a derivative formula.
MISSING = re.compile(r"derivative for '?(?:aten::)?(\w+)'? is not implemented")

REMEDY = (
    "Hessian products need it; replace it by differentiable operations, or choose --params behind it (losses, "
    "gradients, surfaces and perturbations work as it is)"
)


@contextmanager
def second_derivative_explained(
    per_example: Callable[[Tensor, slice], Tensor], theta: Tensor, num_rows: int
) -> Iterator[None]:
    """Where work with Hessian products fails, find out whether the first rows' loss has a second derivative at all.

    An operation whose backward pass is wrong without saying so (a custom one that detaches what it saved) raises
    nothing and may leave the products symmetric; :func:`landscape.risk.preflight.check_difference` sees it.

    Raises
    ------
    LandscapeError
        In the place of PyTorch's error: names the operation, and says what can be done.
    """
    try:
        yield
    except LandscapeError:
        raise
    except (RuntimeError, NotImplementedError):
        with differentiation(), random_states_kept(theta.device):
            _require_second_derivative(per_example, theta, min(2, num_rows))
        raise


def _require_second_derivative(per_example: Callable[[Tensor, slice], Tensor], theta: Tensor, num_rows: int) -> None:
    point = theta.detach().clone().requires_grad_()
    losses = per_example(point, slice(0, num_rows))
    if not losses.requires_grad:
        return
    try:
        (gradient,) = torch.autograd.grad(losses.sum(), point, create_graph=True, materialize_grads=True)
        if gradient.requires_grad:
            torch.autograd.grad(gradient, point, torch.ones_like(gradient), materialize_grads=True)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            return
        first_line = str(error).splitlines()[0]
        raise LandscapeError(f"{_offender(first_line, losses)} ({first_line}): {REMEDY}") from error


def _offender(message: str, losses: Tensor) -> str:
    missing = MISSING.search(message)
    if missing:
        return f"the operation '{missing[1].strip('_').removesuffix('_backward')}' has no second derivative in PyTorch"
    custom = list(_custom_functions(losses))
    if custom:
        return f"the custom operation {' or '.join(map(repr, custom))} has no second derivative"
    return "an operation of the model or loss has no second derivative"


def once_differentiable_operations(losses: Tensor) -> list[str]:
    """Return the custom operations of a graph that are marked with ``once_differentiable``.

    PyTorch raises for them only where a second backward pass reaches the mark. It does not look for it where nothing
    else leads to the parameters, and then leaves their part of the Hessian out without a word.
    """
    return [
        name
        for name, function in _custom_functions(losses).items()
        # The decorator's wrapper is a function of this module.
        if getattr(function.backward, "__globals__", {}).get("__name__") == "torch.autograd.function"
    ]


def custom_operations(losses: Tensor) -> list[str]:
    """Return the names of the operations of a graph that bring a backward pass of their own, ours left out."""
    return [name for name, function in _custom_functions(losses).items() if not _is_ours(function)]


def _is_ours(function: Any) -> bool:
    return str(getattr(function, "__module__", "")).startswith("landscape.")


def require_twice_differentiable(once: Sequence[str]) -> None:
    """Raise LandscapeError if there are operations that are marked as differentiable once."""
    if once:
        raise LandscapeError(
            f"the custom operation '{once[0]}' is marked once_differentiable, it has no second derivative: {REMEDY}"
        )


def _custom_functions(losses: Tensor) -> dict[str, Any]:
    """Return the custom autograd functions of a graph by name."""
    found: dict[str, Any] = {}
    seen: set[Node] = set()
    waiting = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        if function is not None and hasattr(function, "backward"):
            found[function.__name__] = function
        waiting.extend(parent for parent, _ in node.next_functions)
    return found
