"""Separable self-attention (MobileViTv2): as a kernel, and as a mixer of CAS-ViT's block."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from castling.attention.config import BareConfig
from castling.attention.image_mixer import ImageMixer
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import Kernel
from castling.attention.registry import register_attention, register_image_mixer
from castling.ops.convolutional_additive import image_to_tokens, tokens_to_image
from castling.ops.separable import separable


@dataclasses.dataclass(frozen=True, kw_only=True)
class Separable(BareConfig):
    """out_i = relu(v_i) ⊙ Σ_j softmax_j(⟨w, q⟩)_j k_j; O(N·d).

    MobileViTv2 (Mehta & Rastegari, "Separable Self-attention for Mobile Vision Transformers",
    arXiv 2206.02680). In CAS-ViT's block one 1×1 convolution gives a score, a key and a value to
    each position, as published. In a token host each head scores its queries with a vector w of
    its own; the host needs d_v = d and as many queries as keys.
    """

    name: ClassVar[str] = "separable"


@register_attention(Separable)
class SeparableKernel(Kernel):
    """Separable self-attention on the tokens of a host; state: ``score`` w, (H, d)."""

    def __init__(self, config: Separable, num_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        if head_dim != value_dim:
            raise ValueError(
                "separable multiplies each value with a sum of keys, channel by channel: the "
                f"host's values must be as wide as its keys, got {value_dim} and {head_dim} "
                "channels a head; choose another attention for this host or leave the layer out "
                "with where="
            )
        self.score = nn.Parameter(torch.empty(num_heads, head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Normally distributed, of variance 1/d."""
        nn.init.normal_(self.score, std=self.head_dim**-0.5)

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`.

        Raises:
            ValueError: there are not as many queries as keys, or there is an auxiliary branch.
        """
        query, key, value, added, key_mask = inputs[:5]
        if query.shape[1] != key.shape[1]:
            raise ValueError(
                "separable scores each key by the query at its position; this layer has "
                f"{query.shape[1]} queries and {key.shape[1]} keys: choose another attention, or "
                "leave this layer out with where="
            )
        if added is not None:
            raise ValueError("separable takes no auxiliary branch: choose another attention")
        scores = query.transpose(1, 2) @ self.score.to(query.dtype).unsqueeze(-1)
        return separable(scores.transpose(1, 2), key, value, key_mask=key_mask)


@register_image_mixer(Separable)
class SeparableMixer(ImageMixer):
    """MobileViTv2's attention over all positions of a map.

    Args:
        dim: C.
        config: the configuration.
        proj_drop: dropout probability on the result.
    """

    def __init__(
        self, dim: int, config: Separable | None = None, *, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        self.config = config or Separable()
        self.dim = dim
        self.qkv = nn.Conv2d(dim, 1 + 2 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        tokens = image_to_tokens(self.qkv(x), 1)
        scores, key, value = tokens.split([1, self.dim, self.dim], dim=-1)
        mixed = tokens_to_image(separable(scores, key, value), (x.shape[-2], x.shape[-1]))
        return self.proj_drop(self.proj(mixed))
