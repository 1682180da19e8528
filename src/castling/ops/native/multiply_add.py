"""How fast one thread of this machine multiplies and adds: the limit of every product."""

from __future__ import annotations

import ctypes
import struct

from castling.ops.native.library import function


def multiply_add_rate() -> float:
    """float32 GFLOP/s of one thread in the library's instruction set, from registers alone.

    Takes 20 ms; a multiply-add counts as two operations. ``CASTLING_ISA`` decides on the set, as
    for every kernel.

    Raises:
        RuntimeError: there is no library; says why.
    """
    rate = ctypes.c_double()
    function("multiply_add_rate")(struct.pack("=q", ctypes.addressof(rate)))
    return rate.value
