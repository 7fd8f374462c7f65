"""Cross-entropies that a caller's own loss or network computes, with the digits that PyTorch's lose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from landscape.errors import LandscapeError
from landscape.losses import LOSSES, surprises


def _log_softmax(
    input: Tensor,  # the ordinary function's keyword
    dim: int | None = None,
    _stacklevel: int = 3,
    dtype: torch.dtype | None = None,
) -> Tensor:
    if dim is None or dtype is not None or input.dim() == 0 or not input.is_floating_point():
        return functional.log_softmax(input, dim, _stacklevel, dtype)
    return -surprises(input, dim)


def _log_softmax_of_tensor(input: Tensor, dim: int, dtype: torch.dtype | None = None) -> Tensor:
    return _log_softmax(input, dim, dtype=dtype)


def _cross_entropy(input: Tensor, target: Tensor, *args: Any, **options: Any) -> Tensor:
    given = {name: value for name, value in options.items() if name == "weight" or value not in (None, 0.0)}
    known = given.keys() <= {"weight", "ignore_index", "reduction"}
    if args or not known or input.dim() < 2 or target.is_floating_point():
        # Smoothed labels: no loss is small, but p_m - 1 and p_m (1 - p_m) of a certain example keep no digit either,
        # so a constant takes the place of the largest logit, from which the others are counted.
        return functional.cross_entropy(_shifted(input), target, *args, **options)
    return functional.nll_loss(-surprises(input, 1), target, **given)


def _shifted(logits: Tensor) -> Tensor:
    if logits.dim() < 2 or logits.shape[1] < 2:
        return logits
    largest = logits.detach().argmax(1, keepdim=True)
    return (logits - logits.gather(1, largest)).scatter(1, largest, 0.0)


LIKELIHOODS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.log_softmax: _log_softmax,
    torch.log_softmax: _log_softmax_of_tensor,
    Tensor.log_softmax: _log_softmax_of_tensor,
    functional.cross_entropy: _cross_entropy,
}


class PreciseLikelihoods(TorchFunctionMode):
    """While active, log-softmax and cross-entropy are those of :func:`landscape.losses.surprises`.

    The same numbers, but to rounding at every size; and of what PyTorch has, the forward-mode formulas of log-softmax
    and logsumexp overwrite what their own derivative would need.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return LIKELIHOODS.get(func, func)(*args, **(kwargs or {}))


def losses_of(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, labels: Tensor, name: str) -> Tensor:
    """Return the losses (B,) of logits (B, C) and labels (B,), their cross-entropies to rounding at every size.

    Raises
    ------
    LandscapeError
        If the loss, called ``name``, does not return one value per example.
    """
    if isinstance(loss, tuple(LOSSES.values())):  # made of surprises already
        losses: Tensor = loss(logits, labels)
    else:
        with PreciseLikelihoods():
            losses = loss(logits, labels)
    if not isinstance(losses, Tensor) or losses.shape != logits.shape[:1] or not losses.is_floating_point():
        got = str(tuple(losses.shape)) if isinstance(losses, Tensor) else type(losses).__name__
        if isinstance(losses, Tensor) and not losses.is_floating_point():
            got += f" {losses.dtype}"
        raise LandscapeError(
            f"loss '{name}': expected one value per example {tuple(logits.shape[:1])}, got {got}; use reduction='none'"
        )
    return losses
