"""Loading the shared library of the C++ operators.

- A plain C interface called through ctypes, which releases the GIL during a call.
- Threads come from PyTorch's own OpenMP pool, whose entry point ``import torch`` has loaded.
- ``CASTLING_ISA=portable|avx2|avx512`` forces an instruction set, before the first use.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch  # noqa: F401  loads the OpenMP runtime

from castling.ops.native.arguments import MULTIPLY_ADD, header_text
from castling.ops.native.structures import packer

INSTRUCTION_SETS = ("portable", "avx2", "avx512")
_FILE = Path(__file__).with_name(
    "libcastling_native" + (".dylib" if sys.platform == "darwin" else ".so")
)


class Library(NamedTuple):
    """The loaded library.

    Attributes:
        functions: ctypes handle.
        instruction_set: one of INSTRUCTION_SETS.
        compiler: name and version.
        openmp: whether threads are PyTorch's.
    """

    functions: ctypes.CDLL
    instruction_set: str
    compiler: str
    openmp: bool


@functools.cache
def load(file: Path = _FILE) -> Library | str:
    """The library in ``file``, or why it cannot be used and what to do."""
    if not file.exists():
        return (
            "the C++ operators were not built: install a C++17 compiler (g++ or clang++) and "
            "install castling again"
        )
    try:
        functions = ctypes.CDLL(str(file))
        functions.castling_compiler.restype = ctypes.c_char_p
        # Without this, ctypes would truncate an address to 32 bits.
        functions.castling_use_openmp.argtypes = [ctypes.c_void_p]
        functions.castling_interface.restype = ctypes.c_char_p
        if functions.castling_interface().decode() != _interface():
            return f"{file.name} was built from other sources: install castling again"
        chosen = _instruction_set(functions)
    except ValueError as error:
        return str(error)
    except (OSError, AttributeError) as error:
        return f"{file.name} cannot be used ({error}); install castling again"
    functions.castling_select(INSTRUCTION_SETS.index(chosen))
    entry = openmp_entry()
    functions.castling_use_openmp(entry)
    compiler = functions.castling_compiler().decode()
    return Library(functions, chosen, compiler, entry is not None)


def _instruction_set(functions: ctypes.CDLL) -> str:
    supported = [name for i, name in enumerate(INSTRUCTION_SETS) if functions.castling_runs(i)]
    forced = os.environ.get("CASTLING_ISA")
    if forced and forced not in supported:
        raise ValueError(
            f"CASTLING_ISA={forced}: this machine and build run {', '.join(supported)}; unset it"
        )
    return forced or supported[-1]


def openmp_entry() -> int | None:
    """Address of GOMP_parallel, which every OpenMP runtime of PyTorch exports; None without one."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def _interface() -> str:
    """Fingerprint of the argument structures; ``setup.py`` compiles the same into the library."""
    return hashlib.sha256(header_text().encode()).hexdigest()[:16]


def function(name: str) -> Callable[[bytes], int]:
    """A kernel of the library: takes packed arguments, returns 0, or 1 when out of memory.

    Raises:
        RuntimeError: there is no library.
    """
    library = load()
    if isinstance(library, str):
        raise RuntimeError(library)
    found: Callable[[bytes], int] = getattr(library.functions, f"castling_{name}")
    found.argtypes = [ctypes.c_char_p]  # type: ignore[attr-defined]
    return found


def check(code: int) -> None:
    """Raise MemoryError if a kernel's return code says that it ran out of memory."""
    if code:
        raise MemoryError("the C++ operator could not allocate its scratch memory")


def multiply_add_rate() -> float:
    """float32 GFLOP/s of one thread on registers alone, in the library's instruction set.

    Takes 20 ms; a multiply-add counts as two operations. ``CASTLING_ISA`` forces the instruction
    set, as for every kernel.

    Raises:
        RuntimeError: the library is missing; says why.
    """
    rate = ctypes.c_double()
    function("multiply_add_rate")(packer(MULTIPLY_ADD.members)(rate=ctypes.addressof(rate)))
    return rate.value
