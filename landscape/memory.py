"""How much memory is free."""

from __future__ import annotations

import os

import torch


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
