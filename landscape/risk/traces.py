"""Exact traces of class Hessians, for networks that are piecewise linear in each of their weight tensors."""

from __future__ import annotations

import itertools
import logging
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.risk.arithmetic import differentiation
from landscape.risk.differentiability import second_derivative_explained
from landscape.risk.kernels import TwiceDifferentiable
from landscape.risk.strategies import PerExample, gradient_graph
from landscape.risk.workers import Workers

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

logger = logging.getLogger(__name__)

# More classes than this (backward passes per example) and random probes are the cheaper way to a useful trace.
MOST_CLASSES = 32
# Weights in one graph, where every example has its own; more fall out of a CPU's caches, fewer leave overhead.
CPU_NUMBERS = 2**22
GPU_NUMBERS = 2**28
# A tensor's own curvature is zero below this many units of rounding of the product it is a part of.
ZERO_EPS = 8.0
# Logit directions that together hold less than this share of an example's curvature are not measured.
NEGLIGIBLE = 2.5e-3
# Their squared slopes are taken to be at most this multiple of the largest measured (2.3 was seen, of a share of 1e-8).
UNSEEN = 4.0
# Rounding of a sum of squares; it switches single ReLUs, too (measured on ResNet-20 in float32: 2e-5, 200 units). What is
# left out weighs more: up to 1.2e-4 of a trace (docs/numerics.md).
ROUNDING_EPS = 1000.0


def hessian_traces(risk: ModelRisk, classes: Sequence[int]) -> tuple[Tensor, Tensor] | None:
    r"""Return the traces of the class Hessians and their errors, both (C,) float64; None where there is no proof.

    The Hessian is :math:`G + F` (see :class:`landscape.risk.gauss_newton.ChunkedGaussNewton`). F is a sum of second
    derivatives of the logits. Where the logits are piecewise linear in every weight tensor for itself (ReLU networks with
    frozen BatchNorm, max pooling, residual sums; not where a weight is used twice, not attention) its diagonal blocks are
    zero, so :math:`\mathrm{tr} H = \mathrm{tr} G`, and with the eigenpairs :math:`(a_{ik}, l_{ik})` of the loss's Hessian in
    the logits of example i

    .. math:: \mathrm{tr}\, H_c = \frac{1}{N_c} \sum_{i \in c} \sum_k a_{ik} \, |J_i^T l_{ik}|^2,

    one backward pass per direction, a third of a product each. Directions that hold less than a four-hundredth of an
    example's curvature together are left to the mean of the others, and their share at twice the largest slope is the
    error, beside rounding: an allowance, not a bound, since nobody measured their slopes. Whether the blocks are zero
    is measured: products of random logit combinations of a few examples with a random vector in each tensor. All blocks
    of a network that bends in them have hardly a chance to vanish there to rounding, as far as those examples use every
    operation.

    Parameters
    ----------
    risk
        Networks only, with one fixed Hessian; lanes that share batch statistics have no per-example form.
    classes
        Those wanted; the others are NaN, as are classes without examples.
    """
    if not risk.is_additive or len(risk.class_names) > MOST_CLASSES:
        return None
    if "blocks are zero" not in risk._known:
        with second_derivative_explained(risk.per_example, risk.theta, len(risk._examples.labels)):
            risk._known["blocks are zero"] = _blocks_are_zero(risk)
    if not risk._known["blocks are zero"]:
        return None
    offsets = risk._examples.offsets
    rows = torch.cat([torch.arange(offsets[c], offsets[c + 1]) for c in sorted(set(classes))]).to(risk.device)
    if not len(rows):
        return None
    found = _example_traces(risk, rows)
    if found is None:
        return None
    labels = risk._examples.labels[rows]
    rounding = ROUNDING_EPS * torch.finfo(risk.dtype).eps * found[0].abs()
    values, errors = (
        torch.zeros(len(risk.class_names), dtype=torch.float64, device=risk.device).index_add_(0, labels, part).cpu()
        / torch.bincount(labels, minlength=len(risk.class_names)).cpu()  # 0 / 0: NaN for classes without examples
        for part in (found[0], found[1] + rounding)
    )
    return values, errors


@differentiation()
def _blocks_are_zero(risk: ModelRisk) -> bool:
    """Whether v'Fv is zero for vectors v in single tensors, at one example of each of a few classes."""
    offsets = risk._examples.offsets
    rows = torch.tensor([a for a, b in itertools.pairwise(offsets) if b > a][:4])
    logits_of: PerExample = risk.logits
    generator = torch.Generator().manual_seed(0)
    point = risk.theta
    outputs = logits_of(point, rows)
    combination = torch.randn(outputs.shape, generator=generator, dtype=torch.float64).to(outputs)

    def combined(theta: Tensor, chosen: Tensor) -> Tensor:
        return (logits_of(theta, chosen) * combination).sum(1)

    gradient, point = gradient_graph(combined, point, rows, combination.new_ones(len(rows)))
    if not gradient.requires_grad:
        return True
    allowed = ZERO_EPS * torch.finfo(gradient.dtype).eps
    start = 0
    for size in risk.layout.sizes:
        vector = torch.zeros_like(gradient)
        draw = torch.randn(size, generator=generator, dtype=torch.float64)
        vector[start : start + size] = (draw / draw.norm()).to(vector)
        (product,) = torch.autograd.grad(gradient, point, vector, retain_graph=True, materialize_grads=True)
        if float((vector * product).sum().abs()) > allowed * float(product.norm()):
            return False
        start += size
    return True


@differentiation()
def _example_traces(risk: ModelRisk, rows: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return the traces (m,) of single examples' Gauss-Newton matrices and their errors; None where they cannot be mapped."""
    numbers = GPU_NUMBERS if risk.device.type == "cuda" else CPU_NUMBERS
    size = max(1, min(risk.chunk_size, round(numbers / len(risk.theta))))
    blocks = rows.chunk(-(-len(rows) // size))
    found: list[tuple[Tensor, Tensor]] = []
    workers = Workers(len(blocks), len(rows) * risk.inputs_per_example, risk.device)
    try:
        for first in range(0, len(blocks), workers.num_workers):
            graphs = []  # one after the other: the module's weights are exchanged meanwhile
            for block in blocks[first : first + workers.num_workers]:
                graph = _jacobian_graph(risk, block)
                if graph is None:
                    return None
                graphs.append(graph)
            found += workers.map(_sums_of_squares, graphs)
    finally:
        workers.close()
    values, errors = zip(*found)
    return torch.cat(values), torch.cat(errors)


# Logits (m, C), the points (m, n) they depend on, and the loss's curvatures (m, C) with their directions (m, C, C).
_Graph = tuple[Tensor, Tensor, Tensor, Tensor]


def _jacobian_graph(risk: ModelRisk, rows: Tensor) -> _Graph | None:
    points = risk.theta.detach().expand(len(rows), -1).requires_grad_()
    logits_of: PerExample = risk.logits
    losses_of: PerExample = risk.losses_of
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an operation without a batching rule would run example by example
            with TwiceDifferentiable():
                logits = torch.func.vmap(logits_of)(points, rows[:, None])[:, 0]
    except (RuntimeError, NotImplementedError, UserWarning, ValueError, TypeError) as error:
        logger.debug("no exact trace, examples are not mapped over: %s", error)
        return None
    outputs = logits.detach().requires_grad_()
    with TwiceDifferentiable():
        losses = losses_of(outputs, rows)
    (slopes,) = torch.autograd.grad(losses.sum(), outputs, create_graph=True, materialize_grads=True)
    if not slopes.requires_grad:  # a loss that is linear in the logits
        flat = torch.zeros(outputs.shape, dtype=torch.float64, device=outputs.device)
        return logits.detach(), points, flat, torch.diag_embed(flat)
    columns = [
        torch.autograd.grad(slopes[:, k].sum(), outputs, retain_graph=True, materialize_grads=True)[0]
        for k in range(outputs.shape[1])
    ]
    curvatures, directions = torch.linalg.eigh(torch.stack(columns, 1).double())
    return logits, points, curvatures, directions


def _sums_of_squares(graph: _Graph) -> tuple[Tensor, Tensor]:
    """Return sum_k a_k |J'l_k|^2 of each example, and an allowance: the directions left out at twice the largest slope."""
    logits, points, curvatures, directions = graph
    zero = torch.zeros(len(logits), dtype=torch.float64, device=logits.device)
    if not logits.requires_grad:
        return zero, zero
    sizes = curvatures.abs()
    order = sizes.argsort(1, descending=True)
    total, squares, widest, left = zero.clone(), zero.clone(), zero.clone(), sizes.sum(1)
    for rank, column in enumerate(order.T):
        if bool((left <= NEGLIGIBLE * sizes.sum(1)).all()):
            mean = squares / max(rank, 1)
            rest = torch.gather(curvatures, 1, order[:, rank:]).sum(1)
            return total + rest * mean, UNSEEN * left * torch.maximum(widest, mean)
        own = torch.arange(len(logits), device=logits.device)
        cotangent = directions[own, :, column].to(logits)
        (pulled,) = torch.autograd.grad(logits, points, cotangent, retain_graph=True, materialize_grads=True)
        square = torch.linalg.vector_norm(pulled, dim=1).double().square()
        total += curvatures[own, column] * square
        squares += square
        widest = torch.maximum(widest, square)
        left = (left - sizes[own, column]).clamp_min(0.0)
    return total, zero
