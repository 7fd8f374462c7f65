"""Named generator streams from one root seed.

A stream is found by its *name* (``spectrum/lane=9/probe=3``), never by ``seed + i``, so that adding a draw in
one place cannot shift the numbers of another, and a resumed run finds the stream of the epoch it stopped at.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def stream_seed(seed: int, name: str) -> int:
    """Return the 63-bit seed of the stream ``name`` under the root ``seed`` (SHA-256 of both)."""
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def stream(seed: int, name: str, device: str | torch.device = "cpu") -> torch.Generator:
    """Return a torch generator for the stream ``name`` of the root ``seed``.

    Analyses leave ``device`` at the CPU and move the draws, so that a CPU and a GPU see the same numbers.

    Examples
    --------
    >>> import torch
    >>> a = torch.randn(3, generator=stream(0, "probe=1"))
    >>> b = torch.randn(3, generator=stream(0, "probe=1"))
    >>> bool((a == b).all())
    True
    """
    import torch

    return torch.Generator(device=device).manual_seed(stream_seed(seed, name))


def numpy_stream(seed: int, name: str) -> np.random.Generator:
    """Return a NumPy generator for the stream ``name`` of the root ``seed``."""
    return np.random.default_rng(stream_seed(seed, name))
