"""What losses are divided by where several processes train."""

from __future__ import annotations

import torch
import torch.distributed
from torch import Tensor


def mean_over_processes(value: Tensor, least: float = 1) -> Tensor:
    """What a loss is divided by: the mean of ``value`` over all processes.

    So the averaged gradients of several processes are those of one that has all images.

    Args:
        value: () of this process.
        least: what the sum over all processes counts as if it is less.
    """
    processes = 1
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        value = value.clone()
        torch.distributed.all_reduce(value)
        processes = torch.distributed.get_world_size()
    return value.clamp(min=least) / processes


def divided_together(parts: dict[str, Tensor], count: Tensor) -> dict[str, Tensor]:
    """Losses that were divided by this process's count, divided by the mean of all processes.

    Args:
        parts: each a sum divided by ``count``, or by 1 where that is less.
        count: () of this process.
    """
    count = count.to(next(iter(parts.values())).dtype)
    factor = count.clamp(min=1) / mean_over_processes(count)
    return {name: part * factor for name, part in parts.items()}
