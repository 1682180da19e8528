"""Softmax attention as a choice of kernel: with it as target a converted host returns to itself."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from castling.attention.base import Kernel
from castling.attention.config import AttentionConfig, register_attention
from castling.ops.softmax import softmax_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Softmax(AttentionConfig):
    """softmax(q kᵀ/√d + bias) v; O(N²·d) through PyTorch's fused kernel."""

    name: ClassVar[str] = "softmax"


@register_attention(Softmax)
class SoftmaxKernel(Kernel):
    """Softmax attention; adds ``extra`` to the weighted average."""

    takes_bias = True
    quadratic = True
    #: Set by hosts that scale their scores otherwise than 1/√d, or drop attention weights.
    scale: float | None = None
    dropout: float = 0.0

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        extra: Tensor | None = None,
        key_mask: Tensor | None = None,
        bias: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """See :class:`Kernel`."""
        out = softmax_attention(
            query,
            key,
            value,
            scale=self.scale,
            bias=bias,
            key_mask=key_mask,
            dropout=self.dropout,
        )
        return out if extra is None else out + extra
