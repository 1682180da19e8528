"""Hedgehog attention (learned, softmax-like feature maps) as a choice of kernel."""

from __future__ import annotations

import dataclasses
from typing import ClassVar, get_args

import torch
from torch import Tensor, nn

from castling.attention.config import AttentionConfig
from castling.attention.kernel import AveragingKernel
from castling.attention.registry import register_attention
from castling.ops.hedgehog import Activation, hedgehog


@dataclasses.dataclass(frozen=True, kw_only=True)
class Hedgehog(AttentionConfig):
    """Sim(q, k) = ⟨φ(q), φ(k)⟩ with φ(x) = [exp(u), exp(−u)], u = Wx + b; O(N·d²).

    Zhang et al., "The Hedgehog & the Porcupine" (ICLR 2024, arXiv 2402.04347). Every head has W and
    b of its own, W starting as the identity and b as zero, so that they can be learned from a
    softmax teacher. Divided by the row sum.

    Attributes:
        activation: ``"softmax"`` divides the 2·d features of a token by their sum, which keeps them
            in [0, 1] in every precision; ``"exp"`` leaves the exponentials of the paper, computed
            relative to the largest of a head. Of queries the divisor cancels, of keys it weighs.
        separate: a map each for queries and keys; False shares one.
        eps: added to the mean of a row of similarities.
    """

    name: ClassVar[str] = "hedgehog"

    activation: Activation = "softmax"
    separate: bool = True
    eps: float = 1e-9

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        if self.activation not in get_args(Activation):
            raise ValueError(f'activation must be "softmax" or "exp", got {self.activation!r}')
        if self.eps <= 0:
            raise ValueError(f"eps must be positive, got {self.eps}")


class HeadMap(nn.Module):
    """W (H, d, d), the identity at first, and b (H, d), zero at first: u = W_h x + b_h.

    Args:
        num_heads: H.
        head_dim: d.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.eye(head_dim).repeat(num_heads, 1, 1))
        self.bias = nn.Parameter(torch.zeros(num_heads, head_dim))

    def forward(self) -> tuple[Tensor, Tensor]:
        """W and b, for the operator that applies them; a call, so that hooks and pruning count."""
        return self.weight, self.bias

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """The identity again, and zero."""
        self.weight.copy_(torch.eye(self.weight.shape[-1]).expand_as(self.weight))
        self.bias.zero_()


@register_attention(Hedgehog)
class HedgehogKernel(AveragingKernel):
    """Hedgehog attention; state: ``query_map`` and, where separate, ``key_map``."""

    def __init__(self, config: Hedgehog, num_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.activation, self.eps = config.activation, config.eps
        self.query_map = HeadMap(num_heads, head_dim)
        self.key_map = HeadMap(num_heads, head_dim) if config.separate else None

    def average(self, query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None) -> Tensor:
        """See :class:`AveragingKernel`."""
        of_query = self.query_map()
        of_key = of_query if self.key_map is None else self.key_map()
        return hedgehog(
            query,
            key,
            value,
            of_query,
            of_key,
            activation=self.activation,
            eps=self.eps,
            key_mask=key_mask,
        )
