"""The pieces of CAS-ViT: its block, what stands between stages, and how each is folded."""

from __future__ import annotations

from timm.layers import DropPath
from torch import Tensor, nn

from castling.attention import (
    AdditiveTokenMixer,
    Attention,
    AttentionConfig,
    ConvolutionalAdditive,
)
from castling.surgery.fold import absorb, register_fold
from castling.surgery.fold_layers import absorb_preceding, can_precede


class LocalIntegration(nn.Module):
    """1×1 · BN · depthwise 3×3 · GELU · 1×1 on (B, C, h, w).

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.network(x)


class GridAttention(Attention):
    """Any registered attention on an image (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        """(B, C, h, w) -> (B, C, h, w)."""
        height, width = x.shape[-2:]
        tokens = super().forward(x.flatten(2).transpose(1, 2), grid=(height, width))
        return tokens.transpose(1, 2).unflatten(2, (height, width))


class ConvMlp(nn.Module):
    """1×1 C→hidden · GELU · 1×1 hidden→C on (B, C, h, w).

    Args:
        dim: C.
        hidden: channels between.
        drop: dropout probability after each convolution.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))


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
        self.attn: nn.Module
        if isinstance(attention, ConvolutionalAdditive):
            self.attn = AdditiveTokenMixer(dim, attention, proj_drop=drop)
        else:
            self.attn = GridAttention(dim, heads_for(dim, head_dim), attention, proj_drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = ConvMlp(dim, int(dim * mlp_ratio), drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
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
    return absorb(module, "proj", "norm")


@register_fold(AdditiveBlock)
def _fold_block(block: AdditiveBlock) -> list[str]:
    """Both norms stand in front of 1×1 convolutions: they go forward into those."""
    done = []
    for norm, layer in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
        before, behind = getattr(block, norm), block.get_submodule(layer)
        if can_precede(before, behind):
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
