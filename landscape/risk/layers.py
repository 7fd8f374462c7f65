"""Diagonal blocks of a lane's Hessian, one parameter tensor or several, from one first backward pass."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from landscape.errors import LandscapeError, unknown_name
from landscape.layout import ParameterLayout
from landscape.risk.arithmetic import differentiation
from landscape.risk.kernels import TwiceDifferentiable
from landscape.risk.products import Chunk
from landscape.risk.strategies import graph_bytes

if TYPE_CHECKING:
    from landscape.risk.model import ModelRisk

# The leaves by name, and the gradient with respect to each, with its graph.
LayerGraph = tuple[dict[str, Tensor], dict[str, Tensor]]


class LayerHessian:
    """Products with the diagonal blocks of one lane's Hessian.

    Every parameter tensor is a leaf of its own, so the second backward pass visits only what leads to the block's.
    """

    def __init__(self, risk: ModelRisk, theta: Tensor, chunks: Sequence[Chunk], *, budget: int) -> None:
        self._risk, self._theta, self._chunks = risk, theta.detach(), list(chunks)
        self.names: tuple[str, ...] = risk.layout.names
        self._kept: dict[int, LayerGraph] = {}
        with differentiation():
            num_rows = max((rows.stop for _, rows, _ in chunks), default=1)
            each, beside = graph_bytes(risk.per_example, self._theta, num_rows, risk._known)
            for index, (_, rows, _) in enumerate(chunks):
                budget -= each * (rows.stop - rows.start) + beside
                if budget < 0:
                    break
                self._kept[index] = self._graph(index)

    def _graph(self, index: int) -> LayerGraph:
        _, rows, coefficients = self._chunks[index]
        leaves = {name: t.clone().requires_grad_() for name, t in self._risk.layout.named(self._theta).items()}
        evaluated = copy.copy(self._risk)
        network = self._risk._network
        # All parameters are given by name; none is left to a flat vector, through which every one would depend on all.
        evaluated._network = replace(network, layout=ParameterLayout.of({}), frozen={**network.frozen, **leaves})
        with TwiceDifferentiable():
            losses = evaluated.per_example(self._theta.new_empty(0), rows)
        if not losses.requires_grad:
            return leaves, {name: torch.zeros_like(leaf) for name, leaf in leaves.items()}
        gradients = torch.autograd.grad(
            losses, list(leaves.values()), coefficients, create_graph=True, materialize_grads=True
        )
        return leaves, dict(zip(leaves, gradients))

    @differentiation()
    def __call__(self, names: Sequence[str], vectors: Tensor) -> Tensor:
        """Return (P, n_block): the block of the named tensors times each row of vectors (P, n_block).

        The block's entries are ordered as the names are. Raises LandscapeError for a name that is no parameter under
        study, or vectors of another length.
        """
        for name in names:
            if name not in self.names:
                raise unknown_name("parameter", name, self.names)
        sizes = dict(zip(self._risk.layout.names, self._risk.layout.sizes))
        expected = sum(sizes[name] for name in names)
        if vectors.dim() != 2 or vectors.shape[1] != expected:
            raise LandscapeError(
                f"block of {', '.join(names)}: expected vectors (P, {expected}), got {tuple(vectors.shape)}"
            )
        out = torch.zeros(vectors.shape, dtype=torch.float64, device=vectors.device)
        for index in range(len(self._chunks)):
            leaves, gradients = self._kept.get(index) or self._graph(index)
            used = [name for name in names if gradients[name].requires_grad]
            if not used:
                continue
            for p, vector in enumerate(vectors):
                along = dict(zip(names, vector.split([sizes[name] for name in names])))
                parts = torch.autograd.grad(
                    [gradients[name] for name in used],
                    [leaves[name] for name in names],
                    [along[name].view_as(leaves[name]) for name in used],
                    retain_graph=True,
                    materialize_grads=True,
                )
                out[p] += torch.cat([part.reshape(-1) for part in parts])
        return out.to(vectors.dtype)

    def close(self) -> None:
        """Let go of the graphs."""
        self._kept.clear()


@contextmanager
def layer_hessian(risk: ModelRisk, theta: Tensor, weights: Tensor) -> Iterator[LayerHessian]:
    """Give products with the diagonal blocks of one lane's Hessian: (names, (P, n_block)) -> (P, n_block).

    One forward and one first backward pass serve all blocks (Zhang et al. 2024, "Why Transformers Need Adam", compute
    blockwise spectra in this order). Graphs are kept while the risk's memory budget lasts.

    Parameters
    ----------
    risk, theta
        The risk, and where its Hessian is taken (n,).
    weights
        (1, C): one lane.

    Raises
    ------
    LandscapeError
        Where the weights are not one lane.
    """
    if weights.dim() != 2 or len(weights) != 1:
        raise LandscapeError(f"layer_hessian: expected the weights of one lane (1, C), got {tuple(weights.shape)}")
    evaluated, chunks = risk._chunks_of(weights)
    product = LayerHessian(evaluated, theta, chunks, budget=risk.memory_budget)
    try:
        yield product
    finally:
        product.close()
