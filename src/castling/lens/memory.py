"""Peak memory of a computation."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _LiveTensors(TorchDispatchMode):
    """Bytes of the tensors that operators have made and that are still alive."""

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
    """Largest memory of tensors alive at one time during a call, beyond those alive before it.

    Activations and results are counted, weights and inputs are not. On a GPU the allocator tells;
    elsewhere every operator's results are followed: scratch memory inside one operator is missed.

    Args:
        function: called once, without gradients.
        device: where it computes.

    Returns:
        10⁶ bytes.
    """
    with torch.no_grad():
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
