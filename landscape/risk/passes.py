"""Which rows of the data enter which lane, with what coefficients, in passes that fit the memory."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from landscape.memory import available_memory
from landscape.risk.examples import Examples
from landscape.risk.products import Chunk

# Rows that one forward pass evaluates, and for every lane that has some of them the rows' coefficients in the lane.
Pass = tuple[slice, list[tuple[int, Tensor]]]

# Chunks on a CPU: large enough to amortise the launches, small enough that fresh allocations stay cheap.
CPU_CHUNK_BYTES = 256 << 20
GPU_CHUNK_BYTES = 4 << 30
MAX_CHUNK = 4096
# Graphs kept on a CPU take this much at most: without one a product costs half as much again, and others share the memory.
CPU_GRAPH_BYTES = 4 << 30


def default_chunk_size(device: torch.device, bytes_per_example: int) -> int:
    """Return the examples per forward pass with gradients (twice the bytes of a plain backward pass each)."""
    budget = GPU_CHUNK_BYTES if device.type == "cuda" else CPU_CHUNK_BYTES
    return max(1, min(MAX_CHUNK, budget // (2 * bytes_per_example)))


def default_memory_budget(device: torch.device) -> int:
    """Return the bytes that graphs of Hessian products may take: a quarter of what is free, on a CPU not without limit."""
    quarter = available_memory(device) // 4
    return min(quarter, CPU_GRAPH_BYTES) if device.type == "cpu" else quarter


def coefficients_of(examples: Examples, weights: Tensor, dtype: torch.dtype) -> Tensor:
    """Return (B, N): row i enters lane b with weights[b, y_i] / (number of rows of class y_i)."""
    per_class = weights.double().cpu() / examples.counts.clamp_min(1)
    return per_class.to(examples.labels.device)[:, examples.labels].to(dtype)


def support(examples: Examples, row: Tensor) -> list[int]:
    """Return the classes with examples that a lane (C,) weighs."""
    return torch.nonzero((row.cpu() != 0) & (examples.counts > 0))[:, 0].tolist()


def lane_chunks(examples: Examples, weights: Tensor, size: int, dtype: torch.dtype) -> list[Chunk]:
    """Return each lane's rows in chunks of at most ``size``."""
    coefficients = coefficients_of(examples, weights, dtype)
    return [
        (lane, rows, coefficients[lane, rows])
        for lane, row in enumerate(weights)
        for rows in examples.chunks(support(examples, row), size)
    ]


def shared_passes(examples: Examples, weights: Tensor, size: int, dtype: torch.dtype) -> list[Pass]:
    """Return passes over the rows of all lanes together, each row once.

    Each lane's backward pass runs over all rows of a pass, so one that several lanes share is cut at the classes' borders.
    """
    coefficients = coefficients_of(examples, weights, dtype)
    supports = [set(support(examples, row)) for row in weights]
    passes: list[Pass] = []
    for chunk in examples.chunks(sorted(set().union(*supports)), size):
        inside = {offset for offset in examples.offsets if chunk.start < offset < chunk.stop}
        cuts = sorted(inside) if len(supports) > 1 else []
        for first, stop in itertools.pairwise([chunk.start, *cuts, chunk.stop]):
            rows = slice(first, stop)
            present = examples.classes_in(rows)
            lanes = [lane for lane, classes in enumerate(supports) if not classes.isdisjoint(present)]
            passes.append((rows, [(lane, coefficients[lane, rows]) for lane in lanes]))
    return passes


def lane_passes(chunks: Iterable[Chunk]) -> list[Pass]:
    """Return one pass per chunk."""
    return [(rows, [(lane, coefficients)]) for lane, rows, coefficients in chunks]


def lanes_apart(examples: Examples, weights: Tensor, dtype: torch.dtype) -> tuple[Examples, list[Chunk]]:
    """Return the lanes' rows one lane after the other, and each lane as one chunk of these.

    A row that enters several lanes stands there as often. The examples that are returned are not in class order:
    they are for reading rows only.
    """
    coefficients = coefficients_of(examples, weights, dtype)
    rows: list[Tensor] = []
    chunks: list[Chunk] = []
    first = 0
    for lane, row in enumerate(weights):
        own = [torch.arange(examples.offsets[c], examples.offsets[c + 1]) for c in support(examples, row)]
        if not own:
            continue
        rows.append(torch.cat(own).to(examples.labels.device))
        stop = first + len(rows[-1])
        chunks.append((lane, slice(first, stop), coefficients[lane, rows[-1]]))
        first = stop
    order = torch.cat(rows) if rows else torch.zeros(0, dtype=torch.int64, device=examples.labels.device)
    return examples.reordered(order), chunks
