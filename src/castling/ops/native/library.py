"""The shared library of the C++ operators: where it is, what it can do here, its threads.

- Plain C interface called through ctypes, which releases the interpreter's lock during a call.
- PyTorch's own OpenMP pool is used: its entry point is in the process since ``import torch``.
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

import torch  # noqa: F401  brings the OpenMP runtime into the process

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
def load() -> Library | str:
    """The library, or why there is none and what to do."""
    if not _FILE.exists():
        return (
            "the C++ operators were not built: install a C++17 compiler (g++ or clang++) and "
            "install castling again"
        )
    try:
        functions = ctypes.CDLL(str(_FILE))
        functions.castling_compiler.restype = ctypes.c_char_p
        # Without this, ctypes would cut an address down to 32 bits.
        functions.castling_use_openmp.argtypes = [ctypes.c_void_p]
        functions.castling_interface.restype = ctypes.c_char_p
        if functions.castling_interface().decode() != _interface():
            return f"{_FILE.name} was built from other sources: install castling again"
        chosen = _instruction_set(functions)
    except ValueError as error:
        return str(error)
    except (OSError, AttributeError) as error:
        return f"{_FILE.name} cannot be used ({error}); install castling again"
    functions.castling_select(INSTRUCTION_SETS.index(chosen))
    entry = openmp_entry()
    functions.castling_use_openmp(entry)
    compiler = functions.castling_compiler().decode()
    return Library(functions, chosen, compiler, entry is not None)


def _instruction_set(functions: ctypes.CDLL) -> str:
    able = [name for i, name in enumerate(INSTRUCTION_SETS) if functions.castling_runs(i)]
    forced = os.environ.get("CASTLING_ISA")
    if forced and forced not in able:
        raise ValueError(
            f"CASTLING_ISA={forced}: this machine and build run {', '.join(able)}; unset it"
        )
    return forced or able[-1]


def openmp_entry() -> int | None:
    """Address of GOMP_parallel, which every OpenMP runtime of PyTorch has; None without one."""
    try:
        return ctypes.cast(ctypes.CDLL(None).GOMP_parallel, ctypes.c_void_p).value
    except (AttributeError, OSError, TypeError):
        return None


def _interface() -> str:
    """What stands for the argument structures; ``setup.py`` computes the same."""
    headers = sorted(_FILE.with_name("csrc").glob("*.h"))
    return hashlib.sha256(b"".join(path.read_bytes() for path in headers)).hexdigest()[:16]


def function(name: str) -> Callable[[bytes], int]:
    """A kernel of the library: takes its packed arguments, returns 0 or, out of memory, 1.

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
    """Raise MemoryError when a kernel returned that it found no memory."""
    if code:
        raise MemoryError("the C++ attention operator found no memory for its scratch space")
