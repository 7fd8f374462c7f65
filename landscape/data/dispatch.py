"""Different operations for different images of one batch, without waiting for the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Images (n, C, H, W) and their parameters (n, P) float64 -> images.
Operation = Callable[[Tensor, Tensor], Tensor]


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a CPU tensor on ``device``; through pinned memory to a GPU, which the host then need not wait for."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def apply_by_kind(images: Tensor, kinds: Tensor, parameters: Tensor, operations: Sequence[Operation]) -> Tensor:
    """Return the images, each changed by the operation of its kind.

    The kinds are known on the host, so the images of each are picked by lists made there: no mask is read back.

    Parameters
    ----------
    images
        (N, C, H, W).
    kinds
        (N,) int64 on the CPU: index into ``operations``, or -1 to leave an image as it is.
    parameters
        (N, P) float64 on the CPU.
    operations
        What each kind does to its images.
    """
    counts = torch.bincount(kinds + 1, minlength=len(operations) + 1).tolist()
    if counts[0] == len(kinds):
        return images
    order = torch.argsort(kinds, stable=True)[counts[0] :]
    rows, values = moved(order, images.device), moved(parameters[order], images.device)
    result, start = images.clone(), 0
    for operation, count in zip(operations, counts[1:]):
        if count:
            part = slice(start, start + count)
            result.index_copy_(0, rows[part], operation(images[rows[part]], values[part]))
            start += count
    return result
