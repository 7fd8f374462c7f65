"""Products with the Gauss-Newton matrix, the part of a Hessian that a network linear in its weights would have."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.risk.arithmetic import differentiation
from landscape.risk.differentiability import require_twice_differentiable, second_derivative_explained
from landscape.risk.kernels import TwiceDifferentiable
from landscape.risk.products import Chunk
from landscape.risk.protocol import HessianProduct

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk


@dataclass(frozen=True)
class _Graphs:
    """What one chunk keeps: z(theta), u -> J'u, and the slope of its loss in z, each with its graph."""

    point: Tensor  # (n,)
    logits: Tensor  # (m, C)
    cotangent: Tensor  # u (m, C)
    pulled: Tensor  # J'u (n,)
    outputs: Tensor  # (m, C), the logits cut off from the weights
    slope: Tensor  # (m, C): d sum_i c_i loss_i / dz


class ChunkedGaussNewton:
    r"""Products with :math:`G = \sum_i c_i J_i^T \frac{\partial^2 \ell_i}{\partial z_i^2} J_i` of B lanes.

    :math:`z_i` are the logits of example i, :math:`J_i = \partial z_i / \partial \theta`. The Hessian is
    :math:`H = G + F` with the functional part :math:`F = \sum_i c_i \sum_k (\partial \ell_i / \partial z_{ik})
    \nabla^2 z_{ik}` (Schraudolph, Neural Computation 2002, section 3). For a loss that is convex in the logits G is
    positive semidefinite, so negative curvature comes from F alone; G is zero where no loss bends in the logits.

    J v is the derivative of u -> J'u along v, so that every operation with a second derivative serves; the loss may be
    any twice differentiable function of an example's logits, as its own Hessian is multiplied by double backward. With
    the graphs kept, a product costs less than one with the Hessian. Chunk sums are added in float64.

    Parameters
    ----------
    logits
        Differentiable logits (m, C) at a point (n,) of a range of rows.
    losses
        Per-example losses (m,) of the logits of a range of rows.
    theta, chunks, budget, bytes_per_example
        As for :class:`landscape.risk.products.ChunkedHessian`.
    """

    def __init__(
        self,
        logits: Callable[[Tensor, slice], Tensor],
        losses: Callable[[Tensor, slice], Tensor],
        theta: Tensor,
        chunks: Sequence[Chunk],
        *,
        budget: int,
        bytes_per_example: int,
    ) -> None:
        self._logits, self._losses = logits, losses
        self._theta = theta.detach()
        self._chunks = chunks
        self._kept: dict[int, _Graphs | None] = {}
        for index, (_, rows, coefficients) in enumerate(chunks):
            budget -= 2 * bytes_per_example * (rows.stop - rows.start)
            if budget < 0:
                break
            with differentiation():
                self._kept[index] = self._graphs(rows, coefficients)

    def _graphs(self, rows: slice, coefficients: Tensor) -> _Graphs | None:
        """Return the chunk's graphs; None where it has no Gauss-Newton part."""
        point = self._theta.clone().requires_grad_()
        with TwiceDifferentiable():
            logits = self._logits(point, rows)
        if not logits.requires_grad:  # the model does not use the chosen parameters
            return None
        outputs = logits.detach().requires_grad_()
        (slope,) = torch.autograd.grad(
            self._losses(outputs, rows), outputs, coefficients, create_graph=True, materialize_grads=True
        )
        if not slope.requires_grad:  # the loss is linear in the logits
            return None
        cotangent = torch.zeros_like(logits, requires_grad=True)
        (pulled,) = torch.autograd.grad(logits, point, cotangent, create_graph=True, materialize_grads=True)
        return _Graphs(point, logits, cotangent, pulled, outputs, slope)

    @differentiation()
    def __call__(self, vectors: Tensor, lanes: Sequence[int] | None = None) -> Tensor:
        """Return the products (B', P, n) with P vectors for each of the lanes given (by default all B)."""
        out = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device)
        row_of = {lane: row for row, lane in enumerate(range(len(vectors)) if lanes is None else lanes)}
        for index, (lane, rows, coefficients) in enumerate(self._chunks):
            if lane not in row_of:
                continue
            graphs = self._kept[index] if index in self._kept else self._graphs(rows, coefficients)
            if graphs is None:
                continue
            for p, vector in enumerate(vectors[row_of[lane]]):
                out[row_of[lane], p] += _multiply(graphs, vector)
        return out.to(vectors.dtype)

    def close(self) -> None:
        """Let go of the graphs."""
        self._kept.clear()


def _multiply(graphs: _Graphs, vector: Tensor) -> Tensor:
    (pushed,) = torch.autograd.grad(
        graphs.pulled, graphs.cotangent, vector, retain_graph=True, materialize_grads=True
    )  # J v (m, C)
    (bent,) = torch.autograd.grad(graphs.slope, graphs.outputs, pushed, retain_graph=True, materialize_grads=True)
    (product,) = torch.autograd.grad(graphs.logits, graphs.point, bent, retain_graph=True, materialize_grads=True)
    return product


@contextmanager
def gauss_newton_products(risk: ModelRisk, theta: Tensor, weights: Tensor) -> Iterator[HessianProduct]:
    """Give the products of :meth:`ModelRisk.gauss_newton`."""
    evaluated, chunks = risk._chunks_of(weights)
    require_twice_differentiable(risk._once)
    with second_derivative_explained(risk.per_example, risk.theta, len(risk._examples.labels)):
        product = ChunkedGaussNewton(
            evaluated.logits,
            evaluated.losses_of,
            theta,
            chunks,
            budget=risk.memory_budget,
            bytes_per_example=risk._bytes_per_example,
        )
        try:
            yield product
        finally:
            product.close()


def curvature_parts(risk: ModelRisk, theta: Tensor, weights: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return v'Hv, v'Gv and v'Fv, each (B,) float64, see :meth:`ModelRisk.curvature_split`."""
    directions = vectors.double()
    whole = (directions * risk.hvps(theta, weights, vectors).double()).sum(1)
    with risk.gauss_newton(theta, weights) as product:
        part = (directions * product(vectors[:, None])[:, 0].double()).sum(1)
    return whole, part, whole - part
