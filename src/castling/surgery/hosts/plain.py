"""What plain vision transformers share: blocks of equal attentions behind one patch embedding.

Not a family of its own: adapters of the attention classes that timm's plain models use inherit from
:class:`PlainAttention`.
"""

from __future__ import annotations

from typing import Any

from timm.models.deepseek_vit import DeepseekVitEncoder
from timm.models.eva import Eva
from timm.models.qwen3_vit import Qwen3VitEncoder
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from castling.attention import AttentionConfig, SoftmaxKernel
from castling.surgery.geometry import Geometry
from castling.surgery.hosts.base import (
    HostAttention,
    Place,
    join,
    named_hosts,
    shared_geometry,
    watch_tokens,
)
from castling.surgery.hosts.registry import adapter_for
from castling.surgery.key_mask import as_key_mask

#: Models of ``patch_embed`` and ``blocks`` that keep their tokens row by row behind a prefix.
PLAIN_MODELS = (VisionTransformer, Eva, Qwen3VitEncoder, DeepseekVitEncoder)


class PlainAttention(HostAttention):
    """Attention on (B, N, C) tokens, grid unknown to it, with normalisations and a gate."""

    attn_dim: int
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
        self.attn_dim = host.num_heads * host.head_dim
        self.take(host, "q_norm", "k_norm", "attn_drop", "norm", "gate", "proj", "proj_drop")

    @classmethod
    def places(cls, model: nn.Module) -> dict[str, Place]:
        """See :class:`HostAttention`; outside the known models an attention has no grid."""
        kinds = ", ".join(kind.__name__ for kind in PLAIN_MODELS)
        places = {
            name: Place(no_grid=f"it stands outside timm's plain models ({kinds})")
            for name, m in model.named_modules()
            if adapter_for(m) is cls
        }
        hosts = [host for kind in PLAIN_MODELS for host in named_hosts(model, kind)]
        for prefix, vit in dict(hosts).items():
            inside = _places_inside(cls, vit)
            places.update({join(prefix, name): place for name, place in inside.items()})
        return places

    def mixed(
        self,
        x: Tensor,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None,
        is_causal: bool,
    ) -> Tensor:
        """Attention, normalisation, gate and output projection.

        Args:
            x: (B, N, C) tokens, as the host's attention received them.
            query: (B, N, H, d).
            key: (B, N, H, d).
            value: (B, N, H, d).
            attn_mask: excludes keys, see :func:`as_key_mask`.
            is_causal: refused.

        Returns:
            (B, N, C).

        Raises:
            ValueError: a mask that is not a key mask, or a causal one: linear attention has none.
        """
        batch, tokens, _ = x.shape
        if is_causal:
            raise ValueError("a converted vision transformer attends in both directions: is_causal")
        if isinstance(self.kernel, SoftmaxKernel):
            self.kernel.dropout = self.attn_drop.p if self.training else 0.0
        out = self.attend(
            query,
            key,
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


def _places_inside(family: type[PlainAttention], vit: nn.Module) -> dict[str, Place]:
    """The places of one model's attentions of a family, by name from the model."""
    patch_embed: Any = vit.patch_embed
    names = [
        f"blocks.{name}"
        for name, module in vit.get_submodule("blocks").named_modules()
        if adapter_for(module) is family
    ]
    geometry, no_grid = None, ""
    if not hasattr(patch_embed, "feat_ratio"):
        no_grid = f"{type(patch_embed).__name__} does not tell its stride"
    elif not isinstance(getattr(vit, "patch_drop", None), nn.Identity | None):
        no_grid = "patch_drop_rate leaves holes in it while training"
    elif names:
        geometry = shared_geometry(vit, patch_embed, Geometry.watch_patch_embed)
    prefix: Any = getattr(vit, "num_prefix_tokens", 0)
    places = {name: Place(geometry, num_prefix_tokens=prefix, no_grid=no_grid) for name in names}
    if geometry is not None:
        watch_tokens(vit, geometry, places)
    return places
