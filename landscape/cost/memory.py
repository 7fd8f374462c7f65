"""How much memory a piece of work takes: on a GPU as its allocator says, elsewhere counted tensor by tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, and their peak, while it is active.

    Parameters
    ----------
    held
        Tensors that are alive before (weights, states); they are counted from the start.

    Attributes
    ----------
    peak : int
        Largest number of bytes alive at once. Exact for tensors; the workspace of kernels is not in it.

    Examples
    --------
    >>> with LiveTensors([]) as memory:
    ...     a = torch.zeros(1000) + 1  # zeros is freed after the sum
    ...     b = a * 2
    >>> memory.peak
    8000
    """

    def __init__(self, held: Iterable[Tensor]) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: set[int] = set()
        for tensor in held:
            self._count(tensor)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf)
        return result

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.alive += size
        self.peak = max(self.peak, self.alive)
        weakref.finalize(storage, self._free, key, size).atexit = False

    def _free(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.alive -= size


def peak_bytes(work: Callable[[], Any], held: Iterable[Tensor], device: torch.device) -> int:
    """Return the peak of memory during ``work``, in bytes, with the tensors that it is given.

    Parameters
    ----------
    work
        What to measure; called once.
    held
        Tensors that stay alive and belong to the work: weights, buffers, the states of the optimizer, the batch.
    device
        On ``cuda`` the allocator's peak minus what was allocated before, plus ``held``; elsewhere :class:`LiveTensors`.
    """
    tensors = list(held)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        work()
        torch.cuda.synchronize(device)
        own = sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())
        return torch.cuda.max_memory_allocated(device) - before + own
    with LiveTensors(tensors) as memory:
        work()
    return memory.peak
