"""The pieces of CAS-ViT: its block, what stands between stages, and how each is folded."""

from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from castling.attention import Attention, AttentionConfig, image_mixer_class
from castling.models.cas_vit_folded import folded_weights
from castling.models.cas_vit_parts import ConvMlp, LocalIntegration
from castling.ops.additive_block import additive_block, can_take
from castling.surgery.fold import absorb, register_fold
from castling.surgery.fold_layers import absorb_preceding, can_precede
from castling.utils.plain import is_plain


class GridAttention(Attention):
    """Any registered attention on an image (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, h, w) -> (B, C, h, w)."""
        batch, channels, height, width = x.shape
        tokens = super().forward(x.flatten(2).transpose(1, 2), grid=(height, width))
        return tokens.transpose(1, 2).reshape(batch, channels, height, width)


class AdditiveBlock(nn.Module):
    """Three residuals on (B, C, h, w): local integration, token mixer, MLP.

    Args:
        dim: C.
        attention: what mixes the tokens.
        head_dim: wanted channels a head, for attentions that have heads.
        mlp_ratio: hidden channels of the MLP in units of C.
        drop: dropout probability in mixer and MLP.
        drop_path: probability of leaving out mixer or MLP in training.
        local_integration: False leaves out the first residual (ablation).
    """

    def __init__(
        self,
        dim: int,
        attention: AttentionConfig,
        *,
        head_dim: int = 32,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        drop_path: float = 0.0,
        local_integration: bool = True,
    ) -> None:
        super().__init__()
        self.local_perception = LocalIntegration(dim) if local_integration else None
        self.norm1 = nn.BatchNorm2d(dim)
        mixer = image_mixer_class(attention)
        self.attn: nn.Module = (
            GridAttention(dim, heads_for(dim, head_dim), attention, proj_drop=drop)
            if mixer is None
            else mixer(dim, attention, proj_drop=drop)
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w); in one operator once folded, see ``fold_``."""
        if not self.training:
            weights = folded_weights(self)
            if weights is not None and can_take(x, weights):
                return additive_block(x, weights)
        if self.local_perception is not None:
            x = x + self.local_perception(x)
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Downsample(nn.Module):
    """Convolution 3×3 of stride 2 and BN, between two stages.

    Args:
        in_dim: channels before.
        out_dim: channels after.
    """

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_dim, out_dim, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(out_dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C', ⌈h/2⌉, ⌈w/2⌉)."""
        return self.norm(self.proj(x))


@register_fold(Downsample)
def _fold_downsample(module: Downsample) -> list[str]:
    channels_last(module.proj)
    return absorb(module, "proj", "norm")


def channels_last(*layers: nn.Conv2d) -> None:
    """Put the weights of convolutions into channels-last memory, and with them their outputs.

    New parameters replace the old ones, which ``fold_`` may have to restore. Layers whose weight
    something recomputes stay as they are.
    """
    for layer in layers:
        if not is_plain(layer, nn.Conv2d):
            continue
        weight = layer.weight.detach().contiguous(memory_format=torch.channels_last)
        layer.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)


@register_fold(AdditiveBlock)
def _fold_block(block: AdditiveBlock) -> list[str]:
    """Both norms go forward into the 1×1 convolutions behind them, where the mixer starts with one.

    Pooling has none: its norm stays.
    """
    done = []
    for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
        before = getattr(block, norm)
        parent, _, child = layer.partition(".")
        behind = getattr(getattr(block, parent), child, None)
        if can_precede(before, behind):
            assert isinstance(behind, nn.Module)
            setattr(block, norm, absorb_preceding(before, behind))
            done.append(f"{norm} into {layer}")
    return done


def heads_for(dim: int, head_dim: int) -> int:
    """The divisor of ``dim`` as a number of heads whose width comes nearest to ``head_dim``."""
    divisors = [heads for heads in range(1, dim + 1) if dim % heads == 0]
    return min(divisors, key=lambda heads: abs(dim // heads - head_dim))


def stem(in_chans: int, dim: int, stride: int) -> nn.Sequential:
    """Two convolutions 3×3, each with BN and ReLU; ``stride`` 1, 2 or 4 in all."""
    first, second = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[stride]
    return nn.Sequential(
        nn.Conv2d(in_chans, dim // 2, 3, stride=first, padding=1),
        nn.BatchNorm2d(dim // 2),
        nn.ReLU(),
        nn.Conv2d(dim // 2, dim, 3, stride=second, padding=1),
        nn.BatchNorm2d(dim),
        nn.ReLU(),
    )
