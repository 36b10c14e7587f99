"""Large temporaries that do not cost a page fault for each of their pages, step after step."""

from __future__ import annotations

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # <malloc.h>
KEPT = 2**30  # bytes


def keep_freed_memory() -> None:
    """Let this process keep what it frees, up to 1 GiB, instead of handing it back to the system at once.

    A training step frees tens of megabytes and asks for the same again in the next; by default glibc returns them in
    between, and the system clears every page anew, which costs up to half of a step on a CPU. The process holds no
    more than its peak. Does nothing where the C library is not glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_TRIM_THRESHOLD, KEPT)
        # older versions take no more than 32 MiB here
        if not mallopt(M_MMAP_THRESHOLD, KEPT):
            mallopt(M_MMAP_THRESHOLD, 2**25)
