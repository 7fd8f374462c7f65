"""The fixed examples under study: sorted by class, resident on the device, cut into chunks that fit the memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError

Transform = Callable[[Tensor, torch.dtype], Tensor]


@dataclass(frozen=True)
class Examples:
    """N labelled inputs in class order; class c owns the rows ``offsets[c]`` to ``offsets[c + 1]``.

    ``transform`` turns stored inputs (uint8 images, say) into what the model reads, chunk by chunk and in the dtype
    of the analysis; it must be deterministic.
    """

    inputs: Tensor  # (N, ...)
    labels: Tensor  # (N,) int64, ascending
    offsets: tuple[int, ...]  # (C + 1,)
    transform: Transform | None = None

    @classmethod
    def of(
        cls,
        inputs: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        device: torch.device,
        transform: Transform | None = None,
    ) -> Examples:
        """Sort inputs (N, ...) and labels (N,) by class, keeping the order within a class, on the device."""
        if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= num_classes):
            raise LandscapeError(
                f"wrong number of classes: labels run from {int(labels.min())} to {int(labels.max())}, "
                f"the model has {num_classes} outputs"
            )
        order = torch.argsort(labels, stable=True)
        counts = torch.bincount(labels, minlength=num_classes)
        offsets = (0, *torch.cumsum(counts, 0).tolist())
        return cls(inputs[order].to(device), labels[order].to(device), offsets, transform)

    @property
    def counts(self) -> Tensor:
        """(C,) examples per class, on the CPU."""
        return torch.tensor(self.offsets).diff()

    def read(self, rows: slice | Tensor, dtype: torch.dtype) -> Tensor:
        """Return the model inputs of some rows in ``dtype``."""
        return as_model_inputs(self.inputs[rows], self.transform, dtype)

    def chunks(self, classes: Sequence[int], size: int) -> Iterator[slice]:
        """Yield row ranges of at most ``size`` rows that cover the given classes, merging neighbours."""
        runs: list[list[int]] = []
        for c in sorted(classes):
            start, stop = self.offsets[c], self.offsets[c + 1]
            if start == stop:
                continue
            if runs and runs[-1][1] == start:
                runs[-1][1] = stop
            else:
                runs.append([start, stop])
        for start, stop in runs:
            num_chunks = -(-(stop - start) // size)
            step = -(-(stop - start) // num_chunks)  # even chunks: no tiny last one
            for first in range(start, stop, step):
                yield slice(first, min(first + step, stop))

    def subset(self, rows: Tensor) -> Examples:
        """Return the examples of ascending row numbers."""
        labels = self.labels[rows]
        counts = torch.bincount(labels.cpu(), minlength=len(self.offsets) - 1)
        return Examples(self.inputs[rows], labels, (0, *torch.cumsum(counts, 0).tolist()), self.transform)


def as_model_inputs(stored: Tensor, transform: Transform | None, dtype: torch.dtype) -> Tensor:
    """Return what the model reads: transformed, or in ``dtype`` where floating (token numbers stay integers)."""
    if transform is not None:
        return transform(stored, dtype)
    return stored.to(dtype) if stored.is_floating_point() else stored


def read_examples(data: Any) -> tuple[Tensor, Tensor]:
    """Return inputs (N, ...) and labels (N,) of a pair of tensors, an object with images and labels, or batches.

    Batches (a DataLoader, say) are read once, so augmentation in them is frozen at that one draw.
    """
    if hasattr(data, "images") and hasattr(data, "labels"):
        inputs, labels = data.images, data.labels
    elif isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(x, (Tensor, np.ndarray)) for x in data):
        inputs, labels = map(torch.as_tensor, data)
    elif isinstance(data, Iterable):
        batches = [(torch.as_tensor(batch[0]), torch.as_tensor(batch[1])) for batch in data]
        if not batches:
            raise LandscapeError("the data are empty: expected at least one batch (inputs, labels)")
        inputs = torch.cat([batch[0] for batch in batches])
        labels = torch.cat([batch[1] for batch in batches])
    else:
        raise LandscapeError(
            f"expected data as (inputs, labels) tensors, a data split or an iterable of batches, got {type(data).__name__}"
        )
    if labels.dim() != 1 or len(labels) != len(inputs) or labels.is_floating_point():
        raise LandscapeError(
            f"expected integer labels (N,) beside inputs (N, ...), got labels {tuple(labels.shape)} {labels.dtype} "
            f"and inputs {tuple(inputs.shape)}"
        )
    if len(labels) == 0:
        raise LandscapeError("the data are empty: expected at least one example")
    return inputs, labels.long().cpu()


def limit_per_class(labels: Tensor, limit: int) -> Tensor:
    """Return the row numbers of the first ``limit`` examples of each class, in file order."""
    keep = torch.zeros(len(labels), dtype=torch.bool)
    for c in torch.unique(labels).tolist():
        keep[torch.nonzero(labels == c)[:limit, 0]] = True
    return torch.nonzero(keep)[:, 0]


def available_memory(device: torch.device) -> int:
    """Return bytes of memory that are free now: on the GPU, or in the machine (container limits included)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4 << 30
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            free = min(free, int(file.read()))
    except (OSError, ValueError):
        pass
    return free
