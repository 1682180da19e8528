"""Adapter for timm's plain vision transformers: ViT, DeiT (distilled too), DINO, CLIP towers.

Host attention: ``timm.layers.attention.Attention`` on (B, N, C) tokens, grid unknown to it.
"""

from __future__ import annotations

from typing import Any

from timm.layers.attention import Attention as TimmAttention
from torch import Tensor, nn

from castling.attention import AttentionConfig
from castling.surgery.hosts.base import Place
from castling.surgery.hosts.plain import PlainAttention
from castling.surgery.hosts.registry import register_host


@register_host(TimmAttention)
class ViTAttention(PlainAttention):
    """A plain ViT's attention with its softmax replaced."""

    takes_positions = True

    qkv: nn.Module

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(host, config, place)
        self.take(host, "qkv")

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, C) -> (B, N, C); arguments and errors as in :meth:`PlainAttention.mixed`."""
        batch, tokens, _ = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.unbind(2)
        return self.mixed(x, self.q_norm(query), self.k_norm(key), value, attn_mask, is_causal)
