"""What PyTorch differentiates wrongly, or once only, by its formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


def over_channels(values: Tensor, images: Tensor) -> Tensor:
    """Return one value per channel (C,) in a shape that broadcasts over images (B, C, ...)."""
    return values.view(-1, *[1] * (images.dim() - 2))


def instance_norm(
    input: Tensor,  # the ordinary function's keyword
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Its formula: the fused one is a batch norm of one example, which takes transposed gradients for others."""
    if use_input_stats or running_mean is None or running_var is None:
        variance, mean = torch.var_mean(input, list(range(2, input.dim())), correction=0, keepdim=True)
    else:
        mean, variance = (over_channels(statistic, input) for statistic in (running_mean, running_var))
    out = (input - mean) * torch.rsqrt(variance + eps)
    out = out if weight is None else out * over_channels(weight, input)
    return out if bias is None else out + over_channels(bias, input)


def weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all dimensions but one (all of them for -1); the fused operation's second derivative is wrong."""
    if dim == -1:
        return v * (g / torch.linalg.vector_norm(v))
    others = [d for d in range(v.dim()) if d != dim % v.dim()]
    size = torch.linalg.vector_norm(v, dim=others, keepdim=True) if others else v.abs()
    return v * (g / size)


def hardsigmoid(input: Tensor, inplace: bool = False) -> Tensor:
    """min(max(x + 3, 0), 6) / 6; the fused operation has no second derivative."""
    return functional.relu6(input + 3) / 6


def cdist(x1: Tensor, x2: Tensor, p: float = 2.0, compute_mode: str | None = None) -> Tensor:
    """The distances (..., P, R) of rows (..., P, M) and (..., R, M); the fused operation has no second derivative."""
    difference = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p != 2:
        return torch.linalg.vector_norm(difference, ord=p, dim=-1)
    squares = difference.square().sum(-1)
    apart = squares > 0  # of equal rows the distance is 0, and so are its derivatives
    return torch.where(apart, torch.where(apart, squares, 1).sqrt(), 0)


# The ordinary function, and its formula, with the same keywords.
FORMULAS: dict[Callable[..., Any], Callable[..., Any]] = {
    functional.instance_norm: instance_norm,
    torch._weight_norm: weight_norm,
    functional.hardsigmoid: hardsigmoid,
    torch.cdist: cdist,
}
