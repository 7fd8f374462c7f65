"""How much memory is free."""

from __future__ import annotations

import os
import sys

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


def available_memory(device: torch.device) -> int:
    """Return bytes of memory that are free now: on the GPU, or in the machine (limits of container and process included)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4 << 30
    try:
        with open("/sys/fs/cgroup/memory.max") as file:
            free = min(free, int(file.read()))
    except (OSError, ValueError):
        pass
    return max(min(free, _address_space_left()), 0)


def _address_space_left() -> int:
    """Return the bytes that this process may still map (``ulimit -v``); where nothing limits it, more than any machine has."""
    if resource is None or (limit := resource.getrlimit(resource.RLIMIT_AS)[0]) == resource.RLIM_INFINITY:
        return sys.maxsize
    try:
        with open("/proc/self/statm") as file:
            return limit - int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return limit
