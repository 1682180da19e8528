"""The implementations of an attention operator: which one is chosen, and how to force one.

- ``naive``: basic PyTorch operators; any device and precision, differentiable twice, exportable.
- ``compiled``: the naive formula through ``torch.compile``.
- ``native``: C++ operators on a CPU.
- ``triton``: Triton kernels on a GPU (or in Triton's interpreter, for tests).
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType

import torch
from torch import Tensor
from torch.autograd import forward_ad

from castling.ops import native, triton
from castling.utils.text import did_you_mean

#: Backends behind one ``torch.library`` operator.
FUSED = ("native", "triton")
BACKENDS = ("naive", "compiled", *FUSED)
_FUSED_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

#: Default by device type; a constant to ``torch.compile``. On a GPU too old for the kernels the
#: operator itself falls back to the naive formula.
_DEFAULTS = {
    "cpu": "native" if native.available() else "naive",
    "cuda": "triton" if triton.why_never() is None else "naive",
}


class BackendError(RuntimeError):
    """A forced backend cannot run on the given input."""


def _checked(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(
            f"an attention backend is one of {', '.join(BACKENDS)}; got {backend!r}"
            f"{did_you_mean(str(backend), BACKENDS)}"
        )
    return backend


def _from_environment() -> str | None:
    # CASTLING_PATH is the variable's earlier name.
    backend = os.environ.get("CASTLING_BACKEND") or os.environ.get("CASTLING_PATH")
    return _checked(backend) if backend else None


#: A context variable: what one thread or asyncio task forces must not reach the others, nor outlive
#: its own context because theirs overlap. ``torch.compile`` guards on its value.
_of_process = _from_environment()
_forced: ContextVar[str | None] = ContextVar("castling_backend", default=_of_process)
#: What a context inside a compiled function forces, known while it is traced; "" is nothing.
#: TorchDynamo follows assignments to globals, not to context variables.
_traced: str | None = ""


@contextmanager
def attention_backend(backend: str | None) -> Iterator[None]:
    """Force a backend for the attention operators that this thread or task calls in the context.

    Threads started inside choose by themselves, those of ``nn.DataParallel`` and of gradient
    checkpointing on a GPU among them. The environment variable ``CASTLING_BACKEND``, read when
    castling is imported, forces one for a whole process.

    Args:
        backend: ``"naive"``, ``"compiled"``, ``"native"`` or ``"triton"``; None chooses by device:
            native on a CPU and triton on a GPU where available, else naive.

    Raises:
        ValueError: no such backend.
        BackendError: from the operators inside, when the backend cannot run on their input.
    """
    global _traced
    checked = None if backend is None else _checked(backend)
    if torch.compiler.is_dynamo_compiling():
        before = _traced
        _traced = checked
        try:
            yield
        finally:
            _traced = before
        return
    token = _forced.set(checked)
    try:
        yield
    finally:
        _forced.reset(token)


def _forced_here() -> str | None:
    """The backend forced where this is called; None without."""
    if torch.compiler.is_dynamo_compiling() and _traced != "":
        return _traced
    return _forced.get()


def naive_is_forced() -> bool:
    """Whether :func:`attention_backend` asks for basic operators here."""
    return _forced_here() == "naive"


def backend_module(backend: str, tensor: Tensor) -> ModuleType | None:
    """The package of a fused backend, or None where it cannot run on this tensor."""
    if tensor.numel() == 0:
        return None
    # ``is_cpu`` first: ``Tensor.device`` takes longer than everything else here.
    if backend == "native":
        return native if tensor.is_cpu and native.available() else None
    return _module_on(backend, tensor.device)


def _module_on(backend: str, device: torch.device) -> ModuleType | None:
    if backend == "native":
        return native if device.type == "cpu" and native.available() else None
    return triton if triton.available(device) else None


def available_backends(device: torch.device | str) -> tuple[str, ...]:
    """The backends that work on ``device``, its default first."""
    device = torch.device(device)
    first = "native" if device.type == "cpu" else "triton"
    return (*((first,) if _module_on(first, device) else ()), "naive", "compiled")


def describe_backends() -> dict[str, str]:
    """Every backend with its version here, or the reason why it is missing."""
    return {
        "naive": f"PyTorch {torch.__version__}",
        "compiled": "torch.compile of the naive formula",
        "native": native.describe(),
        "triton": triton.describe(),
    }


@functools.cache
def compiled(formula: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The ``compiled`` backend of a naive formula."""
    function: Callable[..., Tensor] = torch.compile(formula)
    return function


def select_backend(*tensors: Tensor) -> str:
    """The backend for an operator on these tensors of one device.

    Unless forced, a fused backend is chosen only where it supports everything the call needs: not
    for float64, other devices, function transforms, or an ONNX export (basic operators only).

    Args:
        tensors: the query, and the value where d_v may differ from d.

    Raises:
        BackendError: the forced backend cannot run on this device or precision.
    """
    query = tensors[0]
    forced = _forced_here()
    if forced is not None:
        return _forced_backend(forced, query)
    if query.dtype not in _FUSED_DTYPES:
        return "naive"
    if torch.compiler.is_compiling():
        if torch.onnx.is_in_onnx_export() or torch._C._are_functorch_transforms_active():
            return "naive"
    elif _needs_basic_operators():
        return "naive"
    if query.is_cpu:
        return _DEFAULTS["cpu"]
    backend = _DEFAULTS.get(query.device.type, "naive")
    if backend == "triton" and max(tensor.shape[-1] for tensor in tensors) > triton.MAX_HEAD_DIM:
        return "naive"
    return backend


def _needs_basic_operators() -> bool:
    """Whether a function transform, a trace or forward-mode differentiation is active."""
    return (
        torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or forward_ad._current_level >= 0
    )


def _forced_backend(backend: str, query: Tensor) -> str:
    device = query.device
    if backend not in FUSED:
        return backend
    if device.type == "meta":
        return "naive"  # shapes only
    if query.dtype not in _FUSED_DTYPES:
        raise BackendError(
            f"the forced backend {backend!r} takes float32, bfloat16 and float16, got "
            f'{query.dtype}: use attention_backend("naive")'
        )
    if not torch.compiler.is_compiling() and _needs_basic_operators():
        raise BackendError(
            f"the forced backend {backend!r} does not support function transforms, forward-mode "
            'differentiation and torch.jit.trace: use attention_backend("naive")'
        )
    if backend == "native" and device.type != "cpu":
        raise BackendError(f'the forced backend "native" runs on a CPU, the input is on {device}')
    # Compilers cannot trace drivers and files: there the operator checks when it runs.
    if not torch.compiler.is_compiling() and _module_on(backend, device) is None:
        reason = native.why_not() if backend == "native" else triton.why_not(device)
        raise BackendError(f"the forced backend {backend!r} is missing: {reason}")
    return backend
