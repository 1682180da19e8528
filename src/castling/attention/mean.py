"""Mean attention (x/√N features) as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.kernel import AveragingKernel
from castling.attention.registry import register_attention
from castling.ops.mean import mean_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(AttentionConfig):
    """Sim(q, k) = ⟨q, k⟩/N without a normaliser; O(N·d²). A row of QT-ViT's Table 2."""

    name: ClassVar[str] = "mean"


@register_attention(Mean)
class MeanKernel(AveragingKernel):
    """Mean attention."""

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """See :class:`AveragingKernel`."""
        return mean_attention(query, key, value, key_mask=key_mask)
