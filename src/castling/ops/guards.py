"""Dispatch guards: hooks, modes and subclasses that must see basic operators.

They run before every attention call, however small: ``map`` avoids the overhead of generators.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

_KINDS = {Tensor, torch.nn.Parameter}
_on_cpu = operator.attrgetter("is_cpu")


def differentiating(*tensors: Tensor | None) -> bool:
    """Whether a result computed now from these tensors would carry gradients."""
    return torch.is_grad_enabled() and any(
        tensor is not None and tensor.requires_grad for tensor in tensors
    )


def may_bypass_dispatcher(tensors: Sequence[Tensor]) -> bool:
    """Whether a backend may read the tensors' memory directly, past PyTorch's dispatcher.

    Not under a dispatch mode or function transform, nor for subclasses, lazily negated tensors and
    zero tensors without memory.
    """
    return (
        torch._C._len_torch_dispatch_stack() == 0
        and not torch._C._are_functorch_transforms_active()
        and _KINDS.issuperset(map(type, tensors))
        and not any(map(Tensor.is_neg, tensors))
        and not any(map(Tensor._is_zerotensor, tensors))
    )


def check_devices(tensors: Sequence[Tensor]) -> None:
    """Raise ValueError unless all are on one device; 0-dim tensors may be on any."""
    if all(map(_on_cpu, tensors)):
        return
    devices = {str(tensor.device) for tensor in tensors if tensor.ndim > 0}
    if len(devices) > 1:
        raise ValueError(
            f"attention's tensors must be on one device, got some on {', '.join(sorted(devices))}"
        )
