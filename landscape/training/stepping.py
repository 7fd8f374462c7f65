"""How a batch becomes one optimizer step: whole, in pieces, or shared by several processes."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from landscape.training.execution import run_eagerly
from landscape.training.methods import Closures, MiniBatch
from landscape.training.setup import Run


def step_on(run: Run, batch: MiniBatch) -> Tensor:
    """Take one step on a batch; return the mean loss of this process's examples where they were first evaluated.

    The batch is cut into ``accumulate`` pieces of about one size. Of several processes each takes its rows, in order; a
    batch that is too small for that is evaluated by all of them.
    """
    num, processes = len(batch.labels), run.processes
    is_shared = processes.size > 1 and num >= processes.size
    mine = processes.rows(num) if is_shared else slice(0, num)
    parts = _cut(mine, run.spec.accumulate)
    # A compiled network has the shapes of a full batch; the last one of an epoch is not worth another compilation.
    with run_eagerly(run.spec.compile and num != run.spec.batch_size):
        if len(parts) == 1 and not is_shared:
            closures = run.method.closures(batch)
            return run.optimizer.step(closures.descent, closures.labels, closures.ascent)
        with run.objective.part_of(batch.labels):
            pieces = [run.method.closures(rows_of(batch, rows)) for rows in parts]
            return run.optimizer.step(
                [piece.descent for piece in pieces],
                _labels(run, pieces, mine, num) if is_shared else torch.cat([piece.labels for piece in pieces]),
                [piece.ascent for piece in pieces if piece.ascent is not None] or None,
                first_row=mine.start if is_shared else None,
            )


def num_rows(run: Run, num: int) -> int:
    """Return how many of a batch's ``num`` examples this process evaluates."""
    rows = run.processes.rows(num)
    return rows.stop - rows.start if num >= run.processes.size else num


def rows_of(batch: MiniBatch, rows: slice) -> MiniBatch:
    """Return a part of a batch; what a method draws it draws for each part."""

    def part(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows]
        if isinstance(value, tuple):
            return tuple(part(entry) for entry in value)
        return value

    return replace(batch, **{entry.name: part(getattr(batch, entry.name)) for entry in fields(batch)})


def _cut(rows: slice, num_parts: int) -> list[slice]:
    """Return the rows in at most ``num_parts`` parts that differ by at most one row; none is empty."""
    num = rows.stop - rows.start
    ends = [rows.start + k * num // num_parts for k in range(num_parts + 1)]
    return [slice(start, end) for start, end in pairwise(ends) if end > start]


def _labels(run: Run, pieces: list[Closures], mine: slice, num: int) -> Tensor:
    """Return the labels of the whole batch: those of mixed examples are known to the process that mixed them."""
    own = torch.cat([piece.labels for piece in pieces])
    labels = own.new_zeros(num)
    labels[mine] = own
    return run.processes.sum_(labels)
