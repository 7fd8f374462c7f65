"""Gradients as lists over the parameters, with None where the losses do not depend on one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from landscape.processes import Processes

Gradient = list[Tensor | None]  # one entry per trainable parameter


def with_zeros(gradient: Gradient, params: Sequence[Tensor]) -> list[Tensor]:
    """Return the gradient with zeros for None."""
    return [torch.zeros_like(p) if g is None else g for p, g in zip(params, gradient)]


def scaled(gradient: Gradient, scale: float | Tensor) -> Gradient:
    """Return scale * gradient; the same tensors where the scale is the number 1."""
    if not isinstance(scale, Tensor) and scale == 1:
        return gradient
    given = [g for g in gradient if g is not None]
    products = iter(torch._foreach_mul(given, scale) if given else ())
    return [None if g is None else next(products) for g in gradient]


def added(a: Gradient, b: Gradient) -> Gradient:
    """Return a + b with None as zero; new tensors where both are given, because a cache may hold a or b."""
    both = [i for i, (x, y) in enumerate(zip(a, b)) if x is not None and y is not None]
    total = [y if x is None else x for x, y in zip(a, b)]
    if both:
        sums = torch._foreach_add([a[i] for i in both], [b[i] for i in both])  # type: ignore[misc]
        for i, value in zip(both, sums):
            total[i] = value
    return total


class WeightedMean:
    """Mean of the gradients of a batch's pieces, each weighted by its examples, over all processes."""

    def __init__(self) -> None:
        self._parts: list[tuple[Gradient, int]] = []

    def add(self, gradient: Gradient, num_examples: int) -> None:
        """Add the gradient of the mean over ``num_examples`` examples."""
        if self._parts:
            ((before, num_before),) = self._parts
            total, num = added(scaled(before, num_before), scaled(gradient, num_examples)), num_before + num_examples
            gradient, num_examples = scaled(total, 1 / num), num
        self._parts = [(gradient, num_examples)]

    def result(self, processes: Processes, params: Sequence[Tensor]) -> Gradient:
        """Return the mean; one sum over the processes for the whole gradient."""
        ((gradient, num_examples),) = self._parts
        if processes.size == 1:
            return gradient
        filled = with_zeros(scaled(gradient, num_examples), params)
        # What is None for one process is None for all: they run the same network.
        flat = torch.cat([*(g.flatten() for g in filled), filled[0].new_full((1,), num_examples)])
        flat = processes.sum_(flat)
        flat = flat / flat[-1]
        parts = flat[:-1].split([g.numel() for g in filled])
        return [None if g is None else part.view(g.shape) for g, part in zip(gradient, parts)]
