"""Corrections of low rank to linear layers: W + B·A, merged into W at the end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize


class Correction(nn.Module):
    """Adds B·A to a weight (C', C): A (r, C) at random, B (C', r) zero, so that nothing changes.

    Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021, §4.1.

    Args:
        weight: that is corrected.
        rank: r.
        seed: of A, which is the same whatever else drew random numbers before.
    """

    def __init__(self, weight: Tensor, rank: int, seed: int) -> None:
        super().__init__()
        rows, columns = weight.shape
        generator = torch.Generator().manual_seed(seed)
        a = (2 * torch.rand(rank, columns, generator=generator) - 1) / math.sqrt(columns)
        self.a = nn.Parameter(a.to(weight))
        self.b = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """W + B·A."""
        return weight + self.b @ self.a


@contextmanager
def low_rank(model: nn.Module, rank: int) -> Iterator[list[nn.Parameter]]:
    """Corrections on all linear layers of a model; yields the parameters that learn.

    On leaving, also through an error, the corrections are merged and everything is named as before.
    What learned before learns again. Weights shared by several layers are left alone: a merged
    correction would part them.

    Args:
        model: changed in place meanwhile.
        rank: of the corrections; no larger than the sides of a weight.
    """
    learned = [p for p in model.parameters() if p.requires_grad]
    owners: dict[int, int] = {}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    for linear in linears:
        if not parametrize.is_parametrized(linear, "weight"):
            owners[id(linear.weight)] = owners.get(id(linear.weight), 0) + 1
    corrected: list[tuple[nn.Linear, Correction]] = []
    for parameter in learned:
        parameter.requires_grad_(False)
    ids = {id(parameter) for parameter in learned}
    try:
        for linear in linears:
            if parametrize.is_parametrized(linear, "weight"):
                continue
            weight = linear.weight
            if owners[id(weight)] > 1 or id(weight) not in ids:
                continue
            correction = Correction(weight, min(rank, *weight.shape), len(corrected))
            parametrize.register_parametrization(linear, "weight", correction)
            corrected.append((linear, correction))
        yield [p for _, correction in corrected for p in (correction.a, correction.b)]
    finally:
        for linear, _ in corrected:
            parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
            linear._parameters.update({"bias": linear._parameters.pop("bias")})  # weight first
        for parameter in learned:
            parameter.requires_grad_(True)
