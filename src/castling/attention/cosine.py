"""Cosine attention as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import Kernel
from castling.attention.registry import register_attention
from castling.ops.cosine import cosine_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cosine(AttentionConfig):
    """Sim(q, k) = ⟨q̂, k̂⟩; O(N·d²). A row of QT-ViT's Table 2.

    Attributes:
        normalize: ``"l2"`` divides each head's row by its norm; ``"none"``. Row sums cross zero.
        eps: under the root of every norm, in float32.
    """

    name: ClassVar[str] = "cosine"

    normalize: Literal["l2", "none"] = "l2"
    eps: float = 1e-6


@register_attention(Cosine)
class CosineKernel(Kernel):
    """Cosine attention; the auxiliary branch's output is added before the normalisation."""

    def __init__(self, config: Cosine, num_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.normalize, self.eps = config.normalize, config.eps

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`."""
        return cosine_attention(
            *inputs[:3],
            normalize=self.normalize,
            eps=self.eps,
            key_mask=inputs.key_mask,
            auxiliary_output=inputs.auxiliary_output,
        )
