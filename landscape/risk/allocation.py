"""Memory that is freed between two Hessian products stays with the process."""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

# Parameters of glibc's mallopt, by number.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
# Larger blocks still go back to the system when they are freed; free memory below the second number does not.
LARGE = 1 << 30
NEVER = (1 << 31) - 1
PAD = 1 << 26
# Whoever sets one of these has decided.
VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES", "LD_PRELOAD")


@cache
def keep_freed_memory() -> bool:
    """Ask glibc's allocator to keep what is freed, once per process; return whether it does.

    A product on a CPU allocates and frees a few hundred megabytes in pieces of one to thirty. By default they go back to
    the system each time and come again page by page: a tenth of the time of a product of a residual network. The process
    then holds on to the memory of its largest product. Other allocators and systems are left alone.
    """
    if not sys.platform.startswith("linux") or any(name in os.environ for name in VARIABLES):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((M_MMAP_THRESHOLD, LARGE), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD))
    return all(mallopt(parameter, value) == 1 for parameter, value in settings)
