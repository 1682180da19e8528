"""C++ operators for the CPU: the ``native`` backend of the fused attention operators.

- One shared library, independent of the versions of PyTorch and Python, built at installation if
  there is a compiler (setup.py); everything else works without it.
- Kernels for AVX-512, AVX2 and portable code; the best that runs here is used.
- All backends have the same signatures; the operators are registered in :mod:`castling.ops`.
"""

from __future__ import annotations

import functools
from importlib import import_module
from typing import TYPE_CHECKING, Any

from castling.ops.native.library import load, multiply_add_rate

if TYPE_CHECKING:
    from castling.ops.native.linear_attention import (
        linear_attention_backward,
        linear_attention_forward,
    )
    from castling.ops.native.taylor import (
        taylor_attention_backward,
        taylor_attention_forward,
        taylor_state_shape,
    )

__all__ = [
    "available",
    "describe",
    "linear_attention_backward",
    "linear_attention_forward",
    "multiply_add_rate",
    "taylor_attention_backward",
    "taylor_attention_forward",
    "taylor_state_shape",
    "why_not",
]

_HOMES = {
    "linear_attention_forward": "linear_attention",
    "linear_attention_backward": "linear_attention",
    "taylor_attention_forward": "taylor",
    "taylor_attention_backward": "taylor",
    "taylor_state_shape": "taylor",
}


def why_not() -> str | None:
    """Why the operators cannot run here, and what to do; None if they can."""
    library = load()
    return library if isinstance(library, str) else None


@functools.cache
def available() -> bool:
    """Whether the library is built and runs on this machine."""
    return why_not() is None


def describe() -> str:
    """Instruction set, compiler and threads, or why the library is missing."""
    library = load()
    if isinstance(library, str):
        return f"missing: {library}"
    threads = "PyTorch's OpenMP threads" if library.openmp else "POSIX threads"
    return f"C++ {library.instruction_set}, {library.compiler}, {threads}"


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Cached: every attention call looks these names up.
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
