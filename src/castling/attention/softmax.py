"""Softmax attention as a choice of kernel; a host converted to it computes what it did before."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import Kernel
from castling.attention.registry import register_attention
from castling.ops.softmax import softmax_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Softmax(AttentionConfig):
    """softmax(q kᵀ/√d + bias) v; O(N²·d) through PyTorch's fused kernel."""

    name: ClassVar[str] = "softmax"


@register_attention(Softmax)
class SoftmaxKernel(Kernel):
    """Softmax attention; adds the auxiliary branch's output to the weighted average."""

    takes_bias = True
    quadratic = True
    #: Set by hosts whose scale is not 1/√d, or that drop attention weights.
    scale: float | None = None
    dropout: float = 0.0

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`."""
        out = softmax_attention(
            *inputs[:3],
            scale=self.scale,
            bias=inputs.bias,
            key_mask=inputs.key_mask,
            dropout=self.dropout,
        )
        added = inputs.auxiliary_output
        return out if added is None else out + added
