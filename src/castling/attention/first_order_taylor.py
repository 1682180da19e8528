"""First-order Taylor attention as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.kernel import AveragingKernel
from castling.attention.registry import register_attention
from castling.ops.first_order_taylor import first_order_taylor


@dataclasses.dataclass(frozen=True, kw_only=True)
class FirstOrderTaylor(AttentionConfig):
    """Sim(q, k) = 1 + ⟨q̂, k̂⟩, divided by its row sum; O(N·d²). A row of QT-ViT's Table 2.

    Attributes:
        eps: under the root of every norm, in float32.
    """

    name: ClassVar[str] = "first_order_taylor"

    eps: float = 1e-6


@register_attention(FirstOrderTaylor)
class FirstOrderTaylorKernel(AveragingKernel):
    """First-order Taylor attention."""

    def __init__(
        self, config: FirstOrderTaylor, num_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.eps = config.eps

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """See :class:`AveragingKernel`."""
        return first_order_taylor(query, key, value, eps=self.eps, key_mask=key_mask)
