"""Launches of Triton kernels, which can be recorded to compile them without a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

Argument = Tensor | int | float | None

#: What the kernels take.
DTYPES = (torch.float32, torch.bfloat16, torch.float16)

# About twice the multiprocessors of the largest data-centre GPU, which keeps all of them busy.
PROGRAMS_TO_FILL_A_GPU = 264


@dataclass(frozen=True)
class Launch:
    """One kernel launch.

    Args:
        kernel: a ``triton.jit`` function.
        grid: programs along each axis, first axis fastest.
        arguments: run-time arguments by name, in the order of the kernel's parameters.
        constants: its ``tl.constexpr`` parameters.
        num_warps: warps per program.
        num_stages: depth of the software pipeline of its loops.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 2


_recording: ContextVar[list[Launch] | None] = ContextVar("castling_recording", default=None)


def launch(call: Launch) -> None:
    """Run ``call``, or record it inside :func:`recorded_launches`."""
    recording = _recording.get()
    if recording is not None:
        recording.append(call)
        return
    tensors = [a for a in call.arguments.values() if isinstance(a, Tensor)]
    device = tensors[0].device
    # Triton launches on the current device, which need not be the tensors' own.
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        call.kernel[call.grid](
            **call.arguments,
            **call.constants,
            num_warps=call.num_warps,
            num_stages=call.num_stages,
        )


@contextmanager
def recorded_launches() -> Iterator[list[Launch]]:
    """Collect launches instead of running them, to call wrappers on meta tensors."""
    calls: list[Launch] = []
    token = _recording.set(calls)
    try:
        yield calls
    finally:
        _recording.reset(token)


def strides(name: str, tensor: Tensor | None) -> dict[str, Argument]:
    """The kernel arguments ``{name}_batch, _token, _head, _channel`` of a (B, N, H, d) tensor."""
    axes = ("batch", "token", "head", "channel")
    values = (0, 0, 0, 0) if tensor is None else tensor.stride()
    return {f"{name}_{axis}": value for axis, value in zip(axes, values, strict=True)}


def mask_strides(mask: Tensor | None) -> dict[str, Argument]:
    """The kernel arguments ``mask_batch, mask_token`` of a (B, N) mask."""
    values = (0, 0) if mask is None else mask.stride()
    return dict(zip(("mask_batch", "mask_token"), values, strict=True))


def padded_width(channels: int) -> int:
    """The smallest power of two, at least 16 (a matrix product's minimum), for ``channels``."""
    return max(16, 1 << (channels - 1).bit_length())


def sum_parts(parts: Tensor) -> Tensor:
    """Sum float32 ``parts`` over the first axis, always in the same order."""
    if parts.shape[0] == 1:
        return parts[0]
    # Imported here: modules with kernels import Triton.
    from castling.ops.triton.tiles import sum_parts_kernel

    out = torch.empty_like(parts[0])
    block = 128
    arguments: dict[str, Argument] = {
        "parts": parts,
        "out": out,
        "count": parts.shape[0],
        "numbers": out.numel(),
    }
    constants = {"ROWS": min(32, 1 << (parts.shape[0] - 1).bit_length()), "BLOCK": block}
    launch(Launch(sum_parts_kernel, (-(-out.numel() // block),), arguments, constants))
    return out
