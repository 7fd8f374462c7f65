"""Hessian products of many lanes: graphs kept while the memory lasts, tiny lanes together, else the fastest route."""

from __future__ import annotations

from collections import Counter
from collections.abc import MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from landscape.memory import keep_freed_memory
from landscape.risk.arithmetic import differentiation
from landscape.risk.lockstep import Block, blocks_of, joint_graph, spread
from landscape.risk.strategies import (
    Graph,
    PerExample,
    Strategy,
    aligned,
    backward_over_forward,
    backward_twice,
    fastest_route,
    gradient_graph,
    graph_bytes,
    require_strategy,
)
from landscape.risk.workers import Workers

# A chunk of one lane's weighted sum: the lane, its rows of examples, and the rows' coefficients in the lane.
Chunk = tuple[int, slice, Tensor]


class ChunkedHessian:
    """Products with the Hessians of B lanes, each a weighted sum of per-example losses cut into chunks.

    A retained graph costs 2 gradients per product, reverse over forward 2.67, a fresh graph 3 for the first vector and
    2 for each other. Lanes of few examples share graphs, see :mod:`landscape.risk.lockstep`. Sums over chunks are added
    in float64.

    Parameters
    ----------
    per_example
        Differentiable losses (rows,) at a point (n,) of a range of rows, or of row numbers (k,).
    theta
        Where the Hessians are taken (n,).
    chunks
        The work; every lane's chunks together are the lane.
    budget
        Bytes for graphs. They are kept, lanes of few examples first, while their measured sizes fit.
    strategy
        ``"auto"``: graphs while the budget lasts, then the faster of the other two, as timed once. ``"retained"``:
        graphs whatever they take. ``"reverse-over-forward"``, ``"fresh"``: no graph is kept.
    joint
        Whether lanes of few examples may share graphs.
    known
        What was measured already (sizes, times); measurements are added.
    inputs_per_example
        Numbers in one input: large pieces of the work go to threads of their own, see :mod:`landscape.risk.workers`.

    Attributes
    ----------
    strategies
        How many chunks are formed in which way: ``"joint"``, ``"retained"``, ``"reverse-over-forward"``, ``"fresh"``.

    Raises
    ------
    LandscapeError
        For an unknown strategy.
    """

    def __init__(
        self,
        per_example: PerExample,
        theta: Tensor,
        chunks: Sequence[Chunk],
        *,
        budget: int,
        strategy: Strategy = "auto",
        joint: bool = True,
        known: MutableMapping[str, Any] | None = None,
        inputs_per_example: int = 0,
    ) -> None:
        require_strategy(strategy)
        self._per_example = per_example
        self._theta = theta.detach()
        self._chunks = list(chunks)
        self._known: MutableMapping[str, Any] = {} if known is None else known
        self._budget = budget
        self._strategy: Strategy = strategy
        self._kept: dict[int, Graph] = {}
        self._blocks: list[tuple[Block, Graph]] = []
        self._pieces = Counter(lane for lane, _, _ in chunks)
        self.strategies: Counter[str] = Counter()
        num_rows = sum(rows.stop - rows.start for _, rows, _ in self._chunks)
        self._workers = Workers(0, 0, theta.device)
        if not self._chunks:
            return
        with differentiation():
            if strategy in ("auto", "retained"):
                if joint:
                    self._join()
                self._retain()
            if len(self._kept) < len(self._chunks):
                self._route = self._choose_route()
                self.strategies[self._route] += len(self._chunks) - len(self._kept)
        if theta.device.type == "cpu":
            keep_freed_memory()
        num_pieces = len(self._kept) + len(self._blocks)
        self._workers = Workers(num_pieces, num_rows * inputs_per_example, theta.device)

    def _afford(self, num_examples: int, num_graphs: int) -> bool:
        """Take the bytes of graphs off the budget, if it has them."""
        if self._strategy == "retained":
            return True
        num_rows = max(rows.stop for _, rows, _ in self._chunks)
        each, beside = graph_bytes(self._per_example, self._theta, num_rows, self._known)
        needed = each * num_examples + beside * num_graphs
        if needed > self._budget:
            return False
        self._budget -= needed
        return True

    def _join(self) -> None:
        pieces: dict[int, list[tuple[slice, Tensor]]] = {}
        for lane, rows, coefficients in self._chunks:
            pieces.setdefault(lane, []).append((rows, coefficients))
        device = self._theta.device
        lanes = {
            lane: (
                torch.cat([torch.arange(rows.start, rows.stop, device=device) for rows, _ in parts]),
                torch.cat([coefficients for _, coefficients in parts]),
            )
            for lane, parts in pieces.items()
        }
        joined: set[int] = set()
        for block in blocks_of(lanes, device=device):
            if not self._afford(block.rows.numel(), len(block.lanes)):
                break
            graph = joint_graph(self._per_example, self._theta, block)
            if graph is None:
                break
            self._blocks.append((block, graph))
            joined.update(block.lanes)
        self.strategies["joint"] += len(joined)
        self._chunks = [chunk for chunk in self._chunks if chunk[0] not in joined]

    def _retain(self) -> None:
        for index, (_, rows, coefficients) in enumerate(self._chunks):
            if not self._afford(rows.stop - rows.start, 1):
                break
            self._kept[index] = gradient_graph(self._per_example, self._theta, rows, coefficients)
            self.strategies["retained"] += 1

    def _choose_route(self) -> str:
        if self._strategy in ("reverse-over-forward", "fresh"):
            return self._strategy
        _, rows, coefficients = self._chunks[len(self._kept)]
        return fastest_route(self._per_example, self._theta, rows, coefficients, self._known)

    def _rebuilt(self, index: int, vectors: Tensor) -> list[Tensor | None]:
        """Return the products of a chunk whose graph is not kept."""
        _, rows, coefficients = self._chunks[index]
        # A fresh graph is built once for all probes: from two on it is cheaper than a forward pass for each.
        if self._route == "reverse-over-forward" and (len(vectors) == 1 or self._strategy != "auto"):
            return backward_over_forward(self._per_example, self._theta, rows, coefficients, vectors)
        graph = gradient_graph(self._per_example, self._theta, rows, coefficients)
        return backward_twice(graph, vectors, keep=False)

    @differentiation()
    def __call__(self, vectors: Tensor, lanes: Sequence[int] | None = None) -> Tensor:
        """Return the products (B', P, n) with P vectors for each of the lanes given (by default all B)."""
        row_of = {lane: row for row, lane in enumerate(range(len(vectors)) if lanes is None else lanes)}
        out = torch.zeros_like(vectors)
        sums: dict[int, Tensor] = {}
        mine = [index for index, (lane, _, _) in enumerate(self._chunks) if lane in row_of]
        along = {index: vectors[row_of[self._chunks[index][0]]] for index in mine}
        # Kept graphs only: to build one, the network's weights are exchanged, which two threads must not do at once.
        kept = [index for index in mine if index in self._kept]
        done = dict(zip(kept, self._workers.map(lambda i: backward_twice(self._kept[i], along[i]), kept)))
        for index in mine:
            lane = self._chunks[index][0]
            parts = done.pop(index) if index in done else self._rebuilt(index, along[index])
            for p, part in enumerate(parts):
                if part is None:
                    continue
                if self._pieces[lane] == 1:
                    out[row_of[lane], p] = part
                else:
                    total = sums.get(lane)
                    if total is None:
                        total = sums[lane] = torch.zeros(vectors.shape[1:], dtype=torch.float64, device=vectors.device)
                    total[p] += part
        for lane, total in sums.items():
            out[row_of[lane]] = total.to(out.dtype)
        list(self._workers.map(lambda piece: _advance(*piece, vectors, row_of, out), self._blocks))
        return out

    def close(self) -> None:
        """Let go of the graphs."""
        self._kept.clear()
        self._blocks.clear()
        self._workers.close()


def _advance(block: Block, graph: Graph, vectors: Tensor, row_of: dict[int, int], out: Tensor) -> None:
    """Write the products of a block's lanes into their rows of ``out``."""
    moving = [position for position, lane in enumerate(block.lanes) if lane in row_of]
    gradients, points = graph
    if not moving or not gradients.requires_grad:
        return
    for p in range(vectors.shape[1]):
        along = aligned(spread(vectors, block, row_of, p))
        (parts,) = torch.autograd.grad(gradients, points, along, retain_graph=True, materialize_grads=True)
        for position in moving:
            out[row_of[block.lanes[position]], p] = parts[position]


def lane_bytes(
    per_example: PerExample,
    theta: Tensor,
    chunks: Sequence[Chunk],
    *,
    num_lanes: int,
    known: MutableMapping[str, Any],
) -> list[int]:
    """Return for each lane the bytes that its graphs take when all are kept."""
    needed = [0] * num_lanes
    if not chunks:
        return needed
    with differentiation():
        each, beside = graph_bytes(per_example, theta, max(rows.stop for _, rows, _ in chunks), known)
    for lane, rows, _ in chunks:
        needed[lane] += each * (rows.stop - rows.start) + beside
    return needed
