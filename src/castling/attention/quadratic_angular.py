"""The exact angular kernel in O(N²): what linear-angular attention keeps two terms of."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from castling.attention.config import AttentionConfig
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import Kernel
from castling.attention.registry import register_attention
from castling.ops.angular import quadratic_angular
from castling.ops.linear_inputs import Normalisation


@dataclasses.dataclass(frozen=True, kw_only=True)
class QuadraticAngular(AttentionConfig):
    """Sim(q, k) = 1 − arccos⟨q̂, k̂⟩/π, all terms (Castling-ViT, Eq. 3); reference and ablation.

    Attributes:
        normalize: ``"l2"``, ``"rowsum"`` or ``"none"``.
        eps: under the root of every norm, in float32.
    """

    name: ClassVar[str] = "quadratic_angular"

    normalize: Normalisation = "l2"
    eps: float = 1e-6


@register_attention(QuadraticAngular)
class QuadraticAngularKernel(Kernel):
    """Exact angular attention."""

    quadratic = True

    def __init__(
        self, config: QuadraticAngular, num_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.normalize, self.eps = config.normalize, config.eps

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`."""
        return quadratic_angular(
            *inputs[:3],
            normalize=self.normalize,
            eps=self.eps,
            key_mask=inputs.key_mask,
            auxiliary_output=inputs.auxiliary_output,
        )
