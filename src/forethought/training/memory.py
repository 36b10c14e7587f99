"""Large temporaries that do not cost a page fault for each of their pages, step after step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def keep_freed_memory() -> None:
    """Let this process keep what it frees instead of handing it back to the system at once.

    A training step frees tens of megabytes and asks for the same again in the next; by default glibc returns them in
    between, and the system clears every page anew, which costs up to half of a step on a CPU. The process goes on
    holding what it needed at its peak. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)  # no block is mapped on its own, to be unmapped when it is freed
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)  # nor is the free end of the heap cut off
