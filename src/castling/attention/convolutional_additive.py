"""Convolutional additive attention (CAS-ViT): as a kernel for any host, and as CAS-ViT's own mixer.

Both share :class:`AdditiveMixing`. State names are those of the released checkpoints: ``oper_q``,
``oper_k``, ``dwc``, ``proj`` and, in the mixer, ``qkv``.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, Literal

from torch import Tensor, nn

from castling.attention.config import BareConfig
from castling.attention.image_mixer import ImageMixer
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import GridKernel
from castling.attention.registry import register_attention, register_image_mixer
from castling.ops.convolutional_additive import gate, image_to_tokens, tokens_to_image


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvolutionalAdditive(BareConfig):
    """out = P(Γ(Φ(q) + Φ(k)) ⊙ v) with Φ = channel gate ∘ spatial gate; O(N).

    CAS-ViT (Zhang et al., arXiv 2408.03703), §3.2. Γ and P are depthwise 3×3 convolutions. It needs
    the grid of the tokens, and cannot leave tokens out: no prefix tokens, no key masks. Leaving
    options off gives the rows of the paper's ablation.

    Attributes:
        spatial: gate positions: x·σ(1×1_{C→1}(ReLU(BN(dw3×3(x))))), one map for all channels.
        channel: gate channels: x·σ(1×1(mean over positions of x)).
        order: which gate comes first.
        gamma: apply Γ to Φ(q) + Φ(k); False multiplies the plain sum with v.
    """

    name: ClassVar[str] = "convolutional_additive"

    spatial: bool = True
    channel: bool = True
    order: Literal["spatial_first", "channel_first"] = "spatial_first"
    gamma: bool = True

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        if self.order not in ("spatial_first", "channel_first"):
            raise ValueError(
                f'order must be "spatial_first" or "channel_first", got {self.order!r}'
            )


class SpatialGate(nn.Module):
    """One gate per position, shared by all channels.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.BatchNorm2d(dim),
            nn.ReLU(),
            nn.Conv2d(dim, 1, 1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return gate(x, self.block(x))


class ChannelGate(nn.Module):
    """One gate per channel, from the mean over positions.

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(dim, dim, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return gate(x, self.block(x))


def _gates(config: ConvolutionalAdditive, dim: int) -> nn.Sequential:
    """Φ, with weights of its own."""
    gates: list[nn.Module] = []
    if config.spatial:
        gates.append(SpatialGate(dim))
    if config.channel:
        gates.append(ChannelGate(dim))
    return nn.Sequential(*(gates if config.order == "spatial_first" else reversed(gates)))


class AdditiveMixing(nn.Module):
    """P(Γ(Φ_q(q) + Φ_k(k)) ⊙ v) on images.

    Args:
        config: which gates, and whether Γ.
        dim: C.
    """

    def __init__(self, config: ConvolutionalAdditive, dim: int) -> None:
        super().__init__()
        self.oper_q = _gates(config, dim)
        self.oper_k = _gates(config, dim)
        self.dwc = nn.Conv2d(dim, dim, 3, padding=1, groups=dim) if config.gamma else nn.Identity()
        self.proj = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)

    def mix(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Three images (B, C, h, w) -> (B, C, h, w)."""
        return self.proj(self.dwc(self.oper_q(query) + self.oper_k(key)) * value)


@register_image_mixer(ConvolutionalAdditive)
class AdditiveTokenMixer(AdditiveMixing, ImageMixer):
    """CAS-ViT's token mixer: a 1×1 convolution to q, k, v, then additive mixing.

    Args:
        dim: C.
        config: None means CAS-ViT as published.
        qkv_bias: add a bias to q, k and v.
        proj_drop: dropout probability on the result.
    """

    def __init__(
        self,
        dim: int,
        config: ConvolutionalAdditive | None = None,
        *,
        qkv_bias: bool = False,
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__(config or ConvolutionalAdditive(), dim)
        self.config = config or ConvolutionalAdditive()
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=qkv_bias)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        query, key, value = self.qkv(x).chunk(3, dim=1)
        return self.proj_drop(self.mix(query, key, value))


@register_attention(ConvolutionalAdditive)
class ConvolutionalAdditiveKernel(GridKernel):
    """Convolutional additive attention on the tokens of a host; all heads are mixed together."""

    def __init__(
        self, config: ConvolutionalAdditive, num_heads: int, head_dim: int, value_dim: int
    ) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        if head_dim != value_dim:
            raise ValueError(
                "convolutional_additive multiplies Γ(q + k) with v channel by channel: the host's "
                f"values must be as wide as its keys, got {value_dim} and {head_dim} channels a "
                "head; choose another attention for this host or leave the layer out with where="
            )
        self.mixing = AdditiveMixing(config, num_heads * head_dim)

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`.

        Raises:
            ValueError: as :meth:`GridKernel.require_grid`; there is a key mask.
        """
        grid = self.require_grid(inputs)
        if inputs.key_mask is not None:
            raise ValueError(
                "convolutional_additive cannot leave out masked tokens, its convolutions reach "
                "across them: pass images of one size without key_mask, choose another attention, "
                "or leave this layer out with where="
            )
        images = (tokens_to_image(tensor, grid) for tensor in inputs[:3])
        return image_to_tokens(self.mixing.mix(*images), self.num_heads).to(inputs.value.dtype)
