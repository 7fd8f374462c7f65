"""Operations without a derivative, found before the work starts and named."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.autograd.graph import Node

from landscape.errors import LandscapeError
from landscape.risk.arithmetic import differentiation, random_states_kept

# PyTorch's wording for a kernel without a derivative formula.
MISSING = re.compile(r"derivative for '?(?:aten::)?(\w+)'? is not implemented")


@contextmanager
def second_derivative_explained(
    per_example: Callable[[Tensor, slice], Tensor], theta: Tensor, num_rows: int
) -> Iterator[None]:
    """Where work with Hessian products fails, find out whether the first rows' loss has a second derivative at all.

    An operation whose backward pass is wrong without saying so (a custom one that detaches what it saved) raises
    nothing; it is found by the symmetry of the products, see :mod:`landscape.risk.preflight`.

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
        raise LandscapeError(
            f"{_offender(first_line, losses)} ({first_line}): Hessian products need it; replace it by differentiable "
            "operations, or choose --params behind it (losses, surfaces and perturbations work as it is)"
        ) from error


def _offender(message: str, losses: Tensor) -> str:
    missing = MISSING.search(message)
    if missing:
        return f"the operation '{missing[1].strip('_').removesuffix('_backward')}' has no second derivative in PyTorch"
    custom = [name for name, is_once in _custom_functions(losses) if is_once or "once_differentiable" not in message]
    if custom:
        return f"the custom operation {' or '.join(map(repr, custom))} has no second derivative"
    return "an operation of the model or loss has no second derivative"


def _custom_functions(losses: Tensor) -> list[tuple[str, bool]]:
    """Return the custom autograd functions of a graph, and whether each is marked as differentiable once."""
    found: dict[str, bool] = {}
    seen: set[Node] = set()
    waiting = [losses.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        function = getattr(node, "_forward_cls", None)
        if function is not None:
            found[function.__name__] = hasattr(function.backward, "__wrapped__")
        waiting.extend(parent for parent, _ in node.next_functions)
    return list(found.items())
