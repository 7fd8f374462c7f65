"""How much memory is free, and that what is freed between two steps stays with the process."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]


# Parameters of glibc's mallopt, by number.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# Larger blocks still go back to the system when they are freed; free memory below the second number does not.
LARGE = 1 << 30
NEVER = (1 << 31) - 1
PAD = 1 << 26
# Whoever sets one of these has decided.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


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


@cache
def keep_freed_memory() -> bool:
    """Ask glibc's allocator to keep what is freed, once per process; return whether it does.

    A Hessian product or a training step on a CPU allocates and frees a few hundred megabytes in pieces of one to thirty. By
    default they go back to the system each time and come again page by page: a tenth of the time of a product of a residual
    network, up to a fifth of a step that keeps graphs for several backward passes. The process then holds on to the memory
    of its largest step. Other allocators and systems are left alone.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
