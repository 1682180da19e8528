"""Which implementation an attention operator takes, and how to force one.

- ``naive``: basic PyTorch operators; any device, any precision, differentiable twice, exportable;
- ``compiled``: the naive formula through ``torch.compile``;
- ``native``: the C++ operators on a CPU;
- ``triton``: the Triton kernels on a GPU (or in Triton's interpreter, for tests).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from castling.ops import native, triton

#: One operator of ours each.
FUSED = ("native", "triton")
PATHS = ("naive", "compiled", *FUSED)
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: What each kind of device takes by itself; read by compilers as constants. A GPU too old for the
#: kernels is found out by the operator itself, which then computes the naive formula.
_AUTOMATIC = {
    "cpu": "native" if native.available() else "naive",
    "cuda": "triton" if triton.why_never() is None else "naive",
}

_forced: str | None = None


class PathError(RuntimeError):
    """A forced path cannot serve what it was given."""


def _checked(path: str) -> str:
    if path not in PATHS:
        raise ValueError(f"an attention path is one of {', '.join(PATHS)}; got {path!r}")
    return path


if os.environ.get("CASTLING_PATH"):
    _forced = _checked(os.environ["CASTLING_PATH"])


@contextmanager
def attention_path(path: str | None) -> Iterator[None]:
    """Force every attention operator of this process onto one path inside the context.

    The environment variable ``CASTLING_PATH`` does the same for a whole process.

    Args:
        path: ``"naive"``, ``"compiled"``, ``"native"`` or ``"triton"``; None chooses by device:
            native on a CPU and triton on a GPU where they are there, else naive.

    Raises:
        ValueError: no such path.
        PathError: from the operators inside, when the path cannot serve their input.
    """
    global _forced
    before = _forced
    _forced = None if path is None else _checked(path)
    try:
        yield
    finally:
        _forced = before


def backend_for(path: str, tensor: Tensor) -> ModuleType | None:
    """The package behind a fused path, or None where it cannot run on this tensor."""
    if tensor.numel() == 0:
        return None
    # A device costs more to ask for than everything else here.
    if path == "native":
        return native if tensor.is_cpu and native.available() else None
    return _backend_on(path, tensor.device)


def _backend_on(path: str, device: torch.device) -> ModuleType | None:
    if path == "native":
        return native if device.type == "cpu" and native.available() else None
    return triton if triton.available(device) else None


def available_paths(device: torch.device | str) -> tuple[str, ...]:
    """The paths that work on ``device``, the one chosen by itself first."""
    device = torch.device(device)
    first = "native" if device.type == "cpu" else "triton"
    return (*((first,) if _backend_on(first, device) else ()), "naive", "compiled")


def describe_paths() -> dict[str, str]:
    """Every path with what it is made of here, or why it is not there."""
    return {
        "naive": f"PyTorch {torch.__version__}",
        "compiled": "torch.compile of the naive formula",
        "native": native.describe() if native.available() else f"missing: {native.why_not()}",
        "triton": triton.describe(),
    }


def select_path(*tensors: Tensor) -> str:
    """The path for an operator on these tensors, of one device: query, and value where d_v ≠ d.

    Left to itself it is a fused one only where that can do all that is asked: not in float64,
    not on other devices, not under function transforms, and not while a model is written as ONNX,
    which knows basic operators only.

    Raises:
        PathError: a path is forced that cannot serve this device or precision.
    """
    query = tensors[0]
    if _forced is not None:
        return _forced_path(query)
    if query.dtype not in _FUSED_DTYPES:
        return "naive"
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export() or torch._C._are_functorch_transforms_active():
            return "naive"
    elif _looked_into():
        return "naive"
    if query.is_cpu:
        return _AUTOMATIC["cpu"]
    path = _AUTOMATIC.get(query.device.type, "naive")
    if path == "triton" and max(tensor.shape[-1] for tensor in tensors) > triton.WIDEST_HEAD:
        return "naive"
    return path


def _looked_into() -> bool:
    """Whether something is at work that follows basic operators only."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
    )


def _forced_path(query: Tensor) -> str:
    path, device = str(_forced), query.device
    if path not in FUSED:
        return path
    if device.type == "meta":
        return "naive"  # shapes only: nothing is computed that a path could be chosen for
    if query.dtype not in _FUSED_DTYPES:
        raise PathError(
            f"the forced path {path!r} takes float32, bfloat16 and float16, got {query.dtype}: "
            'use attention_path("naive")'
        )
    if not torch.compiler.is_compiling() and _looked_into():
        raise PathError(
            f"the forced path {path!r} cannot be looked into by function transforms, forward-mode "
            'differentiation and torch.jit.trace: use attention_path("naive")'
        )
    if path == "native" and device.type != "cpu":
        raise PathError(f'the forced path "native" runs on a CPU, the input is on {device}')
    # Compilers cannot look into drivers and files: there the operator finds out when it runs.
    if not torch.compiler.is_compiling() and _backend_on(path, device) is None:
        reason = native.why_not() if path == "native" else triton.why_not(device)
        raise PathError(f"the forced path {path!r} is missing: {reason}")
    return path
