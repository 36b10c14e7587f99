"""Freed memory is kept: what is freed and asked for again costs no page fault."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import ctypes, resource, sys
from forethought.training.memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
def step():
    block = libc.malloc(40 * 2**20)  # 32 MiB is the most that glibc would come to keep by itself
    ctypes.memset(block, 1, 40 * 2**20)
    libc.free(ctypes.c_void_p(block))
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="speaks to glibc")
def test_the_second_time_needs_no_new_pages() -> None:
    faults = {
        how: int(subprocess.run([sys.executable, "-c", SCRIPT, how], capture_output=True, check=True, text=True).stdout)
        for how in ("keep", "give back")
    }
    assert 10 * faults["keep"] < faults["give back"]
