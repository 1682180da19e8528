"""The C library's allocator, told to keep what is freed."""

from __future__ import annotations

import ctypes
import sys

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_PAD = 64 << 20  # bytes by which the heap grows at a time, at least


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, to be used again without asking the system for it.

    PyTorch allocates and frees large tensors in every step. By default glibc takes each from the
    system and gives it back, which then fills it with zeros, page by page: up to a third of the
    time of a training step on a CPU. The process stays as large as it once was; ``malloc_trim``
    still gives memory back.

    Returns:
        Whether the allocator can be told: on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    tell = getattr(ctypes.CDLL(None), "mallopt", None)
    if tell is None:
        return False
    # -1: never give back the top of the heap; 0: no block outside the heap.
    options = ((_TRIM_THRESHOLD, -1), (_MMAP_MAX, 0), (_TOP_PAD, _PAD))
    return sum(tell(option, value) for option, value in options) == len(options)
