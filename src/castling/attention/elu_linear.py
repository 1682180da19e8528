"""ELU linear attention as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.kernel import AveragingKernel
from castling.attention.registry import register_attention
from castling.ops.elu_linear import elu_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class ELULinear(AttentionConfig):
    """Sim(q, k) = ⟨φ(q), φ(k)⟩ with φ(x) = elu(x) + 1, divided by its row sum; O(N·d²).

    Katharopoulos et al., "Transformers are RNNs" (ICML 2020), §3.2.1.

    Attributes:
        eps: added to the mean of a row of similarities.
    """

    name: ClassVar[str] = "elu"

    eps: float = 1e-6


@register_attention(ELULinear)
class ELULinearKernel(AveragingKernel):
    """ELU linear attention."""

    def __init__(self, config: ELULinear, num_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.eps = config.eps

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """See :class:`AveragingKernel`."""
        return elu_linear(query, key, value, eps=self.eps, key_mask=key_mask)
