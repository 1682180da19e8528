"""Adapter for timm's plain vision transformers: ViT, DeiT (distilled too), DINO, CLIP towers.

Host attention: ``timm.layers.attention.Attention`` on (B, N, C) tokens, grid unknown to it.
"""

from __future__ import annotations

from typing import Any

from timm.layers.attention import Attention as TimmAttention
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from castling.attention import AttentionConfig, SoftmaxKernel
from castling.surgery.geometry import Geometry
from castling.surgery.hosts.base import (
    HostAttention,
    Place,
    join,
    named_hosts,
    register_host,
    shared_geometry,
    watch_tokens,
)
from castling.surgery.key_mask import as_key_mask


@register_host(TimmAttention)
class ViTAttention(HostAttention):
    """A plain ViT's attention with its softmax replaced."""

    takes_positions = True

    attn_dim: int
    qkv: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module
    attn_drop: nn.Dropout
    norm: nn.Module
    gate: nn.Module | None
    proj: nn.Module
    proj_drop: nn.Module

    def __init__(self, host: Any, config: AttentionConfig, place: Place) -> None:
        super().__init__(
            config, place, num_heads=host.num_heads, head_dim=host.head_dim, scale=host.scale
        )
        self.take(host, "attn_dim", "qkv", "q_norm", "k_norm", "attn_drop", "norm", "gate")
        self.take(host, "proj", "proj_drop")

    @classmethod
    def places(cls, model: nn.Module) -> dict[str, Place]:
        """See :class:`HostAttention`; a bare attention outside a VisionTransformer has no grid."""
        places = {
            name: Place(no_grid="it stands outside a timm VisionTransformer")
            for name, m in model.named_modules()
            if isinstance(m, TimmAttention | cls)
        }
        for prefix, vit in named_hosts(model, VisionTransformer):
            geometry, no_grid = None, ""
            if not hasattr(vit.patch_embed, "feat_ratio"):
                no_grid = f"{type(vit.patch_embed).__name__} does not tell its stride"
            elif not isinstance(vit.patch_drop, nn.Identity):
                no_grid = "patch_drop_rate leaves holes in it while training"
            else:
                geometry = shared_geometry(vit, vit.patch_embed, Geometry.watch_patch_embed)
            inside = {
                f"blocks.{name}": Place(
                    geometry, num_prefix_tokens=vit.num_prefix_tokens, no_grid=no_grid
                )
                for name, module in vit.blocks.named_modules()
                if isinstance(module, TimmAttention | cls)
            }
            if geometry is not None:
                watch_tokens(vit, geometry, inside)
            places.update({join(prefix, name): place for name, place in inside.items()})
        return places

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B, N, C) -> (B, N, C); ``attn_mask`` may exclude keys, see :func:`as_key_mask`.

        Raises:
            ValueError: a mask that is not a key mask, or a causal one: linear attention has none.
        """
        batch, tokens, _ = x.shape
        if is_causal:
            raise ValueError("a converted vision transformer attends in both directions: is_causal")
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.unbind(2)
        if isinstance(self.kernel, SoftmaxKernel):
            self.kernel.dropout = self.attn_drop.p if self.training else 0.0
        out = self.attend(
            self.q_norm(query),
            self.k_norm(key),
            value,
            grid=self.known_grid(x),
            num_prefix_tokens=self.place.num_prefix_tokens,
            key_mask=None if attn_mask is None else as_key_mask(attn_mask, batch, tokens),
            positions=self.place.positions,
        )
        out = self.norm(out.reshape(batch, tokens, self.attn_dim))
        if self.gate is not None:
            out = out * self.gate(x).sigmoid()
        return self.proj_drop(self.proj(out))
