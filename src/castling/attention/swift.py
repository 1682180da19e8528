"""Efficient additive attention (SwiftFormer) as a mixer of CAS-ViT's block."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from castling.attention.config import BareConfig
from castling.attention.image_mixer import ImageMixer
from castling.attention.registry import register_image_mixer
from castling.ops.convolutional_additive import image_to_tokens, tokens_to_image
from castling.ops.swift import global_query, unit_rows


@dataclasses.dataclass(frozen=True, kw_only=True)
class Swift(BareConfig):
    """out = F(T(g ⊙ k̂) + q̂) with the global query g = Σ_i α_i q̂_i, α_i ∝ ⟨w, q̂_i⟩/√C; O(N·C²).

    SwiftFormer (Shaker et al., "Efficient Additive Attention for Transformer-based Real-time Mobile
    Vision Applications", ICCV 2023). T and F are linear; α is divided by its norm over the tokens.
    It has no values, so it is a mixer for CAS-ViT's block, and token hosts refuse it.

    Attributes:
        eps: under the root of every norm, in float32.
    """

    name: ClassVar[str] = "swift"

    eps: float = 1e-6


@register_image_mixer(Swift)
class SwiftMixer(ImageMixer):
    """SwiftFormer's attention over all positions of a map, one head as published.

    Args:
        dim: C.
        config: the configuration.
        proj_drop: dropout probability on the result.
    """

    def __init__(self, dim: int, config: Swift | None = None, *, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.config = config or Swift()
        self.eps = self.config.eps
        self.qkv = nn.Conv2d(dim, 2 * dim, 1)
        self.score = nn.Parameter(torch.empty(dim))
        self.reset_parameters()
        self.transform = nn.Linear(dim, dim)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def reset_parameters(self) -> None:
        """The score normally distributed, of variance 1; the layers initialise themselves."""
        nn.init.normal_(self.score)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        query, key = image_to_tokens(self.qkv(x), 1).squeeze(2).chunk(2, dim=-1)
        query, key = unit_rows(query, self.eps), unit_rows(key, self.eps)
        mixed = self.proj(self.transform(global_query(query, self.score, self.eps) * key) + query)
        image = tokens_to_image(mixed.unsqueeze(2), (x.shape[-2], x.shape[-1]))
        return self.proj_drop(image)
