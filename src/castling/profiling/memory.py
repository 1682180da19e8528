"""Peak memory of a call: of its tensors, and of the whole process."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_PROCESS = Path("/proc/self")


class _LiveTensors(TorchDispatchMode):
    """Tracks the bytes of live tensors that operators have created."""

    def __init__(self) -> None:
        super().__init__()
        self.alive: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        known = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if _real(leaf)}
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if not _real(leaf):
                continue
            storage = leaf.untyped_storage()
            if id(storage) in known or id(storage) in self.alive:
                continue  # a view, or written in place
            self.alive[id(storage)] = storage.nbytes()
            weakref.finalize(storage, self.alive.pop, id(storage), None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return out


def _real(value: Any) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided


def peak_megabytes(function: Callable[[], Any], device: torch.device) -> float:
    """Peak memory of tensors during a call, beyond those alive before it.

    Activations and results count, weights and inputs do not. On a GPU the allocator's statistics
    are read; elsewhere the results of every operator are tracked, which misses scratch memory
    inside an operator (:func:`resident_megabytes` includes it).

    Args:
        function: called once, with gradients enabled or not as by the caller.
        device: where it computes.

    Returns:
        10⁶ bytes.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e6
    with _LiveTensors() as live:
        function()
    return live.peak / 1e6


def resident_megabytes(function: Callable[[], Any]) -> float | None:
    """Peak growth of the process's physical memory during a call.

    Counts everything in the process, scratch memory and other runtimes included. Memory that the
    process kept from an earlier call is reused without notice, so this is a lower bound.

    Returns:
        10⁶ bytes; None except on Linux.
    """
    try:
        ctypes.CDLL(None).malloc_trim(0)  # return freed memory, so that it counts again
        (_PROCESS / "clear_refs").write_text("5", encoding="ascii")  # reset the peak
        before = _status("VmRSS")
    except (OSError, AttributeError, KeyError):
        return None
    function()
    return max(0.0, _status("VmHWM") - before) / 1e3


def _status(name: str) -> float:
    """Kilobytes."""
    lines = (_PROCESS / "status").read_text(encoding="ascii", errors="replace").splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return float(fields[name].split()[0]) * 1.024
