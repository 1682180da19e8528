"""ReLU linear attention (EfficientViT's kernel) as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.kernel import AveragingKernel
from castling.attention.registry import register_attention
from castling.ops.relu_linear import relu_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReLULinear(AttentionConfig):
    """Sim(q, k) = ⟨relu(q), relu(k)⟩, divided by its row sum; O(N·d²).

    EfficientViT (Cai et al., ICCV 2023), §3.1; a row of QT-ViT's Table 2.

    Attributes:
        eps: added to the mean of a row of similarities.
    """

    name: ClassVar[str] = "relu_linear"

    eps: float = 1e-5


@register_attention(ReLULinear)
class ReLULinearKernel(AveragingKernel):
    """ReLU linear attention."""

    def __init__(self, config: ReLULinear, num_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.eps = config.eps

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """See :class:`AveragingKernel`."""
        return relu_linear(query, key, value, eps=self.eps, key_mask=key_mask)
