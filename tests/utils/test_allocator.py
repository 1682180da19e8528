"""Freed memory is used again, and can still be given back."""

import ctypes
import subprocess
import sys

import pytest

PROGRAM = """
import resource, sys
import torch
from castling.utils.allocator import keep_freed_memory
assert sys.argv[1] == "default" or keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(8 << 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
for _ in range(4):
    faults()  # until blocks of this size and alignment are there
print(faults())
"""


def faults(how: str) -> int:
    """Pages that the system hands out for 32 MiB that were allocated and freed before."""
    program = subprocess.run(
        [sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True
    )
    return int(program.stdout)


@pytest.mark.skipif(
    not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"), reason="glibc's allocator"
)
def test_memory_that_was_freed_costs_no_page_faults() -> None:
    assert faults("default") > 10  # 8,192 pages of 4 KiB, or 16 of 2 MiB
    assert faults("keep") <= 2
