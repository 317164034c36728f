"""How the C library hands out memory, which tells in the speed of training on a CPU."""

import ctypes
import os
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Numbers of `mallopt`'s parameters (malloc.h of glibc)."""


def keep_freed_memory() -> None:
    """Have glibc keep for this process what is freed, instead of giving it back and asking for it again at every step.

    A tensor of more than 32 MB would else come from the operating system each time, which fills it with zeros page by page. The
    peak of memory may grow by some percent (experiments/speed has times and peaks before and after), and stays with the process.
    Nothing happens with another C library, or where a `MALLOC_…` variable says what is wanted.

    Source: mallopt(3).
    """
    if sys.platform != "linux" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)  # never
