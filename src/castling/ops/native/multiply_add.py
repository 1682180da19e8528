"""The rate of multiply-adds of one thread: the upper limit of every matrix product."""

from __future__ import annotations

import ctypes

from castling.ops.native.arguments import MULTIPLY_ADD
from castling.ops.native.library import function
from castling.ops.native.structures import packer

_pack = packer(MULTIPLY_ADD.members)


def multiply_add_rate() -> float:
    """float32 GFLOP/s of one thread on registers alone, in the library's instruction set.

    Takes 20 ms; a multiply-add counts as two operations. ``CASTLING_ISA`` forces the instruction
    set, as for every kernel.

    Raises:
        RuntimeError: the library is missing; says why.
    """
    rate = ctypes.c_double()
    function("multiply_add_rate")(_pack(rate=ctypes.addressof(rate)))
    return rate.value
