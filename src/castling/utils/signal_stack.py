"""The stack on which a thread handles signals, kept as it was around libraries that change it.

OpenVINO's CPU plugin sets an alternate signal stack as it is loaded, sets back the one it found as
it is released, and frees its own. Where two are released in the order in which they were loaded,
the second sets back the freed stack of the first, and the next signal that Python handles (Ctrl-C,
a child that ends) ends the process by a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_DISABLED = 2  # SS_DISABLE: signals are handled on the thread's own stack


class SignalStack(ctypes.Structure):
    """``stack_t`` of sigaltstack(2) on Linux."""

    _fields_ = (
        ("pointer", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("size", ctypes.c_size_t),
    )


def signal_stack() -> SignalStack | None:
    """The calling thread's alternate signal stack; None on systems other than Linux."""
    if not sys.platform.startswith("linux"):
        return None
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack


@contextmanager
def signal_stack_kept() -> Iterator[None]:
    """The calling thread's alternate signal stack is set back as the context is left.

    A plugin of OpenVINO that is loaded within the context then leaves the stack alone as it is
    released, whenever that is.
    """
    before = signal_stack()
    try:
        yield
    finally:
        if before is not None:
            set_stack = ctypes.CDLL(None).sigaltstack
            # Refused where it has become too small: after AMX was allowed, signals need more.
            if set_stack(ctypes.byref(before), None) != 0:
                set_stack(ctypes.byref(SignalStack(flags=_DISABLED)), None)
