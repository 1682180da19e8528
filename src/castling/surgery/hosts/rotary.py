"""Adapters for timm's attentions with rotary positions: EVA-02, DINOv3, Perception Encoder and kin.

Queries and keys are rotated after their normalisation and before the feature map, so that every
kernel sees what the softmax saw and positive feature maps stay positive. Scores of angular and
Taylor attention then depend on relative positions alone, as softmax's do; other feature maps, those
of ReLU most of all, see absolute ones too. Prefix tokens are not rotated.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import apply_rot_embed_cat
from timm.layers.attention import AttentionRope
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn import functional as F

from castling.attention import AttentionConfig
from castling.surgery.hosts.base import Place
from castling.surgery.hosts.plain import PlainAttention
from castling.surgery.hosts.registry import register_host


class _Rotary(PlainAttention):
    """Packed or separate projections, rotary positions."""

    qkv: nn.Linear | None
    q_proj: nn.Module
    k_proj: nn.Module
    v_proj: nn.Module

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(host, config, place)
        self.take(host, "qkv", "q_proj", "k_proj", "v_proj", "num_prefix_tokens", "rotate_half")
        #: G, heads of keys and values, each for H/G query heads.
        self.num_kv_heads: int = getattr(host, "num_kv_heads", host.num_heads)

    def packed(self, x: Tensor, qkv: nn.Linear) -> Tensor:
        """(B, N, C) -> (B, N, 3·H·d)."""
        return qkv(x)

    def rotated(self, tokens: Tensor, rope: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Turn what lies behind the prefix.

        Args:
            tokens: (B, N, G, d).
            rope: sines and cosines, (n, 2·d), (H, n, 2·d) or (B, H or 1, n, 2·d) for the n tokens
                behind the prefix, or None.
            dtype: of the result.
        """
        if rope is None:
            return tokens
        prefix = self.num_prefix_tokens
        behind = tokens[:, prefix:].transpose(1, 2)
        turned = apply_rot_embed_cat(behind, rope, half=self.rotate_half).transpose(1, 2)
        return torch.cat([tokens[:, :prefix], turned], dim=1).to(dtype)

    def forward(
        self,
        x: Tensor,
        rope: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(B, N, C) -> (B, N, C); ``rope`` as in ``rotated``, others as :meth:`mixed`."""
        batch, tokens, _ = x.shape
        if self.qkv is not None:
            qkv = self.packed(x, self.qkv).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
            query, key, value = qkv.unbind(2)
        else:
            query = self.q_proj(x).reshape(batch, tokens, self.num_heads, self.head_dim)
            key = self.k_proj(x).reshape(batch, tokens, self.num_kv_heads, self.head_dim)
            value = self.v_proj(x).reshape(batch, tokens, self.num_kv_heads, self.head_dim)
        query = self.rotated(self.q_norm(query), rope, value.dtype)
        key = self.rotated(self.k_norm(key), rope, value.dtype)
        if (groups := self.num_heads // self.num_kv_heads) > 1:
            key, value = (t.repeat_interleave(groups, dim=2) for t in (key, value))
        return self.mixed(x, query, key, value, attn_mask, is_causal)


@register_host(AttentionRope)
class RotaryAttention(_Rotary):
    """``timm.layers.AttentionRope``, grouped keys and values too, with its softmax replaced."""


@register_host(EvaAttention)
class EvaRotaryAttention(_Rotary):
    """EVA's attention, whose packed projection has biases of its own and none for the keys."""

    q_bias: Tensor | None
    k_bias: Tensor
    v_bias: Tensor

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(host, config, place)
        self.take(host, "q_bias", "k_bias", "v_bias", "qkv_bias_separate")

    def packed(self, x: Tensor, qkv: nn.Linear) -> Tensor:
        """See :class:`_Rotary`."""
        if self.q_bias is None:
            return qkv(x)
        bias = torch.cat((self.q_bias, self.k_bias, self.v_bias))
        return qkv(x) + bias if self.qkv_bias_separate else F.linear(x, qkv.weight, bias)

    def init_non_persistent_buffers(self) -> None:
        """Fill what no checkpoint holds; timm calls it for models built on the meta device."""
        if self.q_bias is not None:
            self.k_bias.zero_()
