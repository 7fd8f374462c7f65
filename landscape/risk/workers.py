"""Independent pieces of a product side by side on a CPU: one piece per core beats all cores on one piece."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")

# Numbers in all inputs of a product below which threads cost more than they save.
FEWEST_NUMBERS = 2**13


class Workers:
    """Threads that compute pieces with one kernel thread each, or nothing at all where that does not pay.

    Which of the two is decided once, so that a piece has the same bits whatever is computed beside it.

    Parameters
    ----------
    num_pieces
        Independent pieces of the work.
    num_inputs
        Numbers in all its inputs.
    device
        Where it runs; a GPU orders its own work.
    """

    def __init__(self, num_pieces: int, num_inputs: int, device: torch.device) -> None:
        num_threads = torch.get_num_threads()
        pays = device.type == "cpu" and num_threads > 1 and num_pieces > 1 and num_inputs >= FEWEST_NUMBERS
        self._pool = ThreadPoolExecutor(min(num_threads, num_pieces), initializer=_single) if pays else None

    @property
    def num_workers(self) -> int:
        """Pieces that are computed at a time."""
        return self._pool._max_workers if self._pool is not None else 1

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterable[Result]:
        """Return the results in the order of the items."""
        if self._pool is None:
            return map(function, items)
        return self._pool.map(lambda item: _with_gradients(function, item), items)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()


def _single() -> None:
    torch.set_num_threads(1)  # of this thread only


def _with_gradients(function: Callable[[Item], Result], item: Item) -> Result:
    # Grad mode belongs to a thread; the settings of landscape.risk.arithmetic belong to the process.
    with torch.inference_mode(False), torch.enable_grad():
        return function(item)
