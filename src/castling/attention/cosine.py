"""Cosine attention as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from torch import Tensor

from castling.attention.base import Kernel
from castling.attention.config import AttentionConfig, register_attention
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
    """Cosine attention; ``extra`` is added before the normalisation."""

    def __init__(self, config: Cosine, num_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.normalize, self.eps = config.normalize, config.eps

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        extra: Tensor | None = None,
        key_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """See :class:`Kernel`."""
        return cosine_attention(
            query,
            key,
            value,
            normalize=self.normalize,
            eps=self.eps,
            key_mask=key_mask,
            auxiliary_output=extra,
        )
