"""Lanes of few examples that advance together: one graph for many lanes instead of many small graphs."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.risk.kernels import TwiceDifferentiable
from landscape.risk.strategies import Graph, PerExample

logger = logging.getLogger(__name__)

# Lanes of at most so many examples are worth joining; from there on, one lane fills the kernels by itself.
MAX_EXAMPLES = 8
# Examples in one joint graph: measured on ResNet-20, where more fall out of a CPU's caches and fewer leave overhead.
CPU_BLOCK = 32
GPU_BLOCK = 2048


@dataclass(frozen=True)
class Block:
    """Lanes with the same number of examples k: their numbers (L,), rows (L, k) and coefficients (L, k)."""

    lanes: tuple[int, ...]
    rows: Tensor
    coefficients: Tensor


def blocks_of(lanes: Mapping[int, tuple[Tensor, Tensor]], *, device: torch.device) -> list[Block]:
    """Return blocks of at least two lanes with equally many examples, so that nothing is padded.

    Parameters
    ----------
    lanes
        For each lane its row numbers (k,) and coefficients (k,).
    """
    by_size: dict[int, list[int]] = {}
    for lane, (rows, _) in lanes.items():
        if 0 < len(rows) <= MAX_EXAMPLES:
            by_size.setdefault(len(rows), []).append(lane)
    blocks = []
    for size, members in sorted(by_size.items()):
        most = max(2, (GPU_BLOCK if device.type == "cuda" else CPU_BLOCK) // size)
        num_blocks = -(-len(members) // most)
        for number in range(num_blocks):
            part = members[number::num_blocks]
            if len(part) > 1:
                rows, coefficients = (torch.stack([lanes[lane][k] for lane in part]) for k in (0, 1))
                blocks.append(Block(tuple(part), rows, coefficients))
    return blocks


def joint_graph(per_example: PerExample, theta: Tensor, block: Block) -> Graph | None:
    """Return the gradients (L, n) of a block's lanes with their graph, and the points (L, n) they depend on.

    Every lane has weights of its own (equal numbers, one storage), so one backward pass multiplies every lane's
    Hessian by a vector of its own; convolutions become grouped ones. None where an operation cannot be mapped over
    lanes: then each lane has its own graph.
    """
    points = theta.detach().expand(len(block.lanes), -1).requires_grad_()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # an operation without a batching rule would run lane by lane
            with TwiceDifferentiable():
                losses = torch.func.vmap(per_example)(points, block.rows)
            if not losses.requires_grad:
                return torch.zeros_like(points), points
            (gradients,) = torch.autograd.grad(losses, points, block.coefficients, create_graph=True)
    except (RuntimeError, NotImplementedError, UserWarning, ValueError, TypeError) as error:
        logger.debug("lanes are not joined: %s", error)
        return None
    return gradients, points


def spread(vectors: Tensor, block: Block, row_of: Mapping[int, int], p: int) -> Tensor:
    """Return (L, n): probe p of each of the block's lanes, zero for lanes that stand still."""
    if all(lane in row_of for lane in block.lanes):
        return vectors[_numbers([row_of[lane] for lane in block.lanes], vectors.device), p]
    out = vectors.new_zeros(len(block.lanes), vectors.shape[-1])
    for position, lane in enumerate(block.lanes):
        if lane in row_of:
            out[position] = vectors[row_of[lane], p]
    return out


def _numbers(values: Sequence[int], device: torch.device) -> slice | Tensor:
    first = values[0]
    if list(values) == list(range(first, first + len(values))):
        return slice(first, first + len(values))
    return torch.tensor(values, device=device)
