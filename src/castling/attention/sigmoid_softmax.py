"""Sigmoid-softmax attention as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.kernel import AveragingKernel
from castling.attention.registry import register_attention
from castling.ops.sigmoid_softmax import sigmoid_softmax


@dataclasses.dataclass(frozen=True, kw_only=True)
class SigmoidSoftmax(AttentionConfig):
    """σ(q) against keys normalised by a softmax over the tokens; O(N·d²). QT-ViT's Table 2."""

    name: ClassVar[str] = "sigmoid_softmax"


@register_attention(SigmoidSoftmax)
class SigmoidSoftmaxKernel(AveragingKernel):
    """Sigmoid-softmax attention."""

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """See :class:`AveragingKernel`."""
        return sigmoid_softmax(query, key, value, key_mask=key_mask)
