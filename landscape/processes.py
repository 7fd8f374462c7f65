"""Several processes that train one network: who this one is, and sums over all of them.

The processes are those of ``torchrun``, which says by environment variables who is who. They talk through torch's own
``torch.distributed``: gloo on CPUs, NCCL on GPUs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from landscape.errors import LandscapeError


@dataclass(frozen=True)
class Processes:
    """The processes of a training, seen from one of them.

    Attributes
    ----------
    rank
        Number of this process, from 0.
    size
        How many there are; a single one never waits for others.

    Examples
    --------
    >>> [Processes(rank, 3).rows(8) for rank in range(3)]
    [slice(0, 2, None), slice(2, 5, None), slice(5, 8, None)]
    """

    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that evaluates and writes files."""
        return self.rank == 0

    def rows(self, num: int) -> slice:
        """Return the part of ``num`` rows that is this process's; parts differ by at most one row."""
        return slice(self.rank * num // self.size, (self.rank + 1) * num // self.size)

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace a tensor by its sum over all processes, in place, and return it."""
        if self.size > 1:
            torch.distributed.all_reduce(tensor)
        return tensor

    def share_first_(self, tensors: Sequence[Tensor]) -> None:
        """Replace tensors by those of the first process, in place."""
        if self.size > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            torch.distributed.barrier()


def launched_processes() -> Processes:
    """Return who this process is among those that ``torchrun`` started; a single one without it."""
    try:
        rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        rank, size = -1, 0
    if not 0 <= rank < size:
        raise LandscapeError(
            f"expected RANK from 0 to WORLD_SIZE - 1, got RANK={os.environ.get('RANK')} and "
            f"WORLD_SIZE={os.environ.get('WORLD_SIZE')}: start with torchrun, or unset both"
        )
    return Processes(rank, size)


@contextmanager
def joined_processes(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, for as long as the context lasts; alone, do nothing.

    A group that the caller has joined already is used and left as it is.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        yield Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
        return
    processes = launched_processes()
    if processes.size == 1:
        yield processes
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield processes
    finally:
        torch.distributed.destroy_process_group()
