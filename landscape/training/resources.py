"""What a run uses: images, seconds and memory, epoch by epoch."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch


@dataclass
class Resources:
    """Counted over all parts of a run, also those before it was interrupted.

    Attributes
    ----------
    num_images
        Training images of each epoch.
    peak_memory_bytes
        The most memory so far, see :func:`peak_memory`.
    """

    num_images: list[int] = field(default_factory=list)
    peak_memory_bytes: int = 0

    def note_epoch(self, num_images: int, device: torch.device) -> None:
        """Take note of an epoch that has just been trained."""
        self.num_images.append(num_images)
        self.peak_memory_bytes = max(self.peak_memory_bytes, peak_memory(device))

    def state_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what :meth:`state_dict` returned."""
        self.num_images = list(state["num_images"])
        self.peak_memory_bytes = int(state["peak_memory_bytes"])

    def timings(self, seconds: Sequence[float], device: torch.device) -> dict[str, Any]:
        """Return the record of a run whose epochs took ``seconds`` (without evaluation)."""
        rates = [num / second for num, second in zip(self.num_images, seconds)]
        return {
            "num_epochs": len(seconds),
            "seconds": sum(seconds),
            "seconds_per_epoch": sum(seconds) / max(len(seconds), 1),
            "images_per_second": sum(self.num_images) / sum(seconds) if seconds else 0.0,
            "seconds_by_epoch": list(seconds),
            "images_per_second_by_epoch": rates,
            "peak_memory_bytes": self.peak_memory_bytes,
            "peak_memory_of": "tensors on the GPU" if device.type == "cuda" else "the process (resident set)",
        }


def peak_memory(device: torch.device) -> int:
    """Return the most bytes in use so far: tensors on a GPU, or the resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
