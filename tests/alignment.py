"""Tensors at other alignments: on a CPU the same operation may have other last bits, which is rounding and nothing else."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map


class ShiftedAllocations(TorchDispatchMode):
    """Put every fresh floating tensor ``shift`` bytes off its usual alignment, or 0, 16, 32 and 48 in turn (``"turns"``)."""

    def __init__(self, shift: int | str) -> None:
        super().__init__()
        self._shift = shift
        self._count = 0

    @classmethod
    def _should_skip_dynamo(cls):
        return False  # nothing is compiled here, and the guard around every call would take most of the time

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if any(result.alias_info is not None for result in func._schema.returns):
            return out  # a view, or in place
        return self._moved(out) if isinstance(out, Tensor) else tree_map(self._moved, out)

    def _moved(self, value):
        if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
            return value
        if value.device.type != "cpu" or value.layout != torch.strided or value._base is not None:
            return value
        self._count += 1
        shift = (self._count * 16) % 64 if self._shift == "turns" else int(self._shift)
        extent = 1 + sum((size - 1) * stride for size, stride in zip(value.shape, value.stride()))
        first = shift // value.element_size()
        room = torch.empty(extent + first, dtype=value.dtype)
        moved = room.as_strided(value.shape, value.stride(), first)
        return moved.copy_(value)
