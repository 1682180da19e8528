"""Mean attention (x/√N features) as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

from torch import Tensor

from castling.attention.base import Kernel
from castling.attention.config import AttentionConfig, register_attention
from castling.ops.mean import mean_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mean(AttentionConfig):
    """Sim(q, k) = ⟨q, k⟩/N without a normaliser; O(N·d²). A row of QT-ViT's Table 2."""

    name: ClassVar[str] = "mean"


@register_attention(Mean)
class MeanKernel(Kernel):
    """Adds ``extra`` to the attention's output."""

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
        out = mean_attention(query, key, value, key_mask=key_mask)
        return out if extra is None else out + extra
