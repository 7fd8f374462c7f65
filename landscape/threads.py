"""How many CPU threads a piece of work deserves."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Numbers per batch of inputs below which one CPU thread is used: such kernels take microseconds, and where the cores
# are shared, the threads of a kernel wait for each other ten times longer than it runs.
SMALL_BATCH = 2**16


@contextmanager
def suitable_threads(num_inputs: int) -> Iterator[None]:
    """Compute with one CPU thread inside while batches hold fewer than ``SMALL_BATCH`` numbers; then as before.

    Also makes the bits of small problems independent of the number of cores.
    """
    before = torch.get_num_threads()
    if num_inputs < SMALL_BATCH:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
