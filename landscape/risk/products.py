"""Hessian products by double backward, with the first backward's graphs kept while the memory lasts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from landscape.risk.arithmetic import differentiation
from landscape.risk.kernels import TwiceDifferentiable

# A chunk of one lane's weighted sum: the lane, its rows of examples, and the rows' coefficients in the lane.
Chunk = tuple[int, slice, Tensor]


class ChunkedHessian:
    """Products with the Hessians of B lanes, each a weighted sum of per-example losses cut into chunks.

    A retained graph costs 2 gradients per product, a fresh one 3. Chunk sums are added in float64.

    Parameters
    ----------
    per_example
        Differentiable losses (rows,) at a point (n,) of a range of rows.
    theta
        Where the Hessians are taken (n,).
    chunks
        The work; every lane's chunks together are the lane.
    budget, bytes_per_example
        Graphs are kept, in the order of the chunks, while their estimated bytes (twice those of a plain backward pass)
        fit the budget.
    """

    def __init__(
        self,
        per_example: Callable[[Tensor, slice], Tensor],
        theta: Tensor,
        chunks: Sequence[Chunk],
        *,
        budget: int,
        bytes_per_example: int,
    ) -> None:
        self._per_example = per_example
        self._theta = theta.detach()
        self._chunks = chunks
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}
        for index, (_, rows, coefficients) in enumerate(chunks):
            budget -= 2 * bytes_per_example * (rows.stop - rows.start)
            if budget < 0:
                break
            with differentiation():
                self._kept[index] = self._gradient(rows, coefficients)

    def _gradient(self, rows: slice, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """Return the chunk's gradient with its graph, and the point it depends on."""
        point = self._theta.clone().requires_grad_()
        with TwiceDifferentiable():
            losses = self._per_example(point, rows)
        if not losses.requires_grad:  # the model does not use the chosen parameters
            return torch.zeros_like(point), point
        (gradient,) = torch.autograd.grad(losses, point, coefficients, create_graph=True, materialize_grads=True)
        return gradient, point

    @differentiation()
    def __call__(self, vectors: Tensor, lanes: Sequence[int] | None = None) -> Tensor:
        """Return the products (B', P, n) with P vectors for each of the lanes given (by default all B)."""
        out = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device)
        row_of = {lane: row for row, lane in enumerate(range(len(vectors)) if lanes is None else lanes)}
        for index, (lane, rows, coefficients) in enumerate(self._chunks):
            if lane not in row_of:
                continue
            kept = self._kept.get(index)
            gradient, point = kept if kept is not None else self._gradient(rows, coefficients)
            if not gradient.requires_grad:
                continue
            for p, vector in enumerate(vectors[row_of[lane]]):
                (part,) = torch.autograd.grad(gradient, point, vector, retain_graph=True, materialize_grads=True)
                out[row_of[lane], p] += part
        return out.to(vectors.dtype)

    def close(self) -> None:
        """Let go of the graphs."""
        self._kept.clear()
