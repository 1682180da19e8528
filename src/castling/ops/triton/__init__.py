"""Triton kernels for NVIDIA GPUs: the ``triton`` backend of the fused attention operators.

- Importing this package does not import Triton, so that everything else works without it.
- With ``TRITON_INTERPRET=1`` set before the first use, the kernels run on CPU tensors, slowly.
- All backends have the same signatures; the operators are registered in :mod:`castling.ops`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from castling.ops.triton.linear_attention import (
        linear_attention_backward,
        linear_attention_forward,
    )
    from castling.ops.triton.taylor import taylor_attention_backward, taylor_attention_forward
    from castling.ops.triton.taylor_configs import taylor_state_shape

__all__ = [
    "available",
    "interpreting",
    "linear_attention_backward",
    "linear_attention_forward",
    "taylor_attention_backward",
    "taylor_attention_forward",
    "taylor_state_shape",
    "why_not",
]

# Products are in bfloat16, which tensor cores support from this compute capability on.
MINIMUM_CAPABILITY = (8, 0)

#: Maximum channels of a head, of queries or values: one program keeps them in registers.
MAX_HEAD_DIM = 128

_HOMES = {
    "linear_attention_forward": "linear_attention",
    "linear_attention_backward": "linear_attention",
    "taylor_attention_forward": "taylor",
    "taylor_attention_backward": "taylor",
    "taylor_state_shape": "taylor_configs",
}


def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


def why_not(device: torch.device | str) -> str | None:
    """Why these kernels cannot serve tensors on ``device``, and what to do; None if they can."""
    device = torch.device(device)
    never = why_never()
    if never is not None:
        return never
    if interpreting():
        if device.type == "cpu":
            return None
        return f"TRITON_INTERPRET=1 serves CPU tensors only, got {device}: unset it for the GPU"
    if device.type != "cuda":
        return f"needs a CUDA device, got {device} (TRITON_INTERPRET=1 runs it on CPU tensors)"
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA device"
    capability = torch.cuda.get_device_capability(device)
    if capability < MINIMUM_CAPABILITY:
        name = torch.cuda.get_device_name(device)
        return f"needs compute capability 8.0 (Ampere) or newer; {name} has {capability}"
    return None


def why_never() -> str | None:
    """Why these kernels cannot run on this machine, whatever its GPU; None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed: it comes with the CUDA builds of PyTorch on Linux"
    if torch.version.hip is not None:
        return "the kernels were written and compiled for NVIDIA GPUs; this PyTorch is for AMD"
    return None


def describe() -> str:
    """Version of Triton, or why the kernels are missing."""
    missing = why_never()
    return f"missing: {missing}" if missing else f"Triton {importlib.metadata.version('triton')}"


def available(device: torch.device | str) -> bool:
    """Whether these kernels can serve tensors on ``device``."""
    return why_not(device) is None


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Cached: every attention call looks these names up.
    found = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found
