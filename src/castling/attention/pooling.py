"""Pooling (PoolFormer) in the place of attention: as a kernel and as a mixer of CAS-ViT's block."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor, nn

from castling.attention.config import BareConfig
from castling.attention.image_mixer import ImageMixer
from castling.attention.inputs import AttentionInputs
from castling.attention.kernel import GridKernel
from castling.attention.registry import register_attention, register_image_mixer
from castling.ops.convolutional_additive import image_to_tokens, tokens_to_image
from castling.ops.pooling import pooling


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pooling(BareConfig):
    """out_i = mean of the neighbours of x_i on the grid, minus x_i; O(N), no parameters.

    PoolFormer (Yu et al., "MetaFormer is Actually What You Need for Vision", CVPR 2022). An
    ablation: nothing is compared with anything. In CAS-ViT's block x is the block's input; in a
    token host x is its values, and queries and keys are computed for nothing. It needs the grid of
    the tokens, and no prefix tokens.

    Attributes:
        size: side of the window in tokens, odd.
    """

    name: ClassVar[str] = "pooling"

    size: int = 3

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        if self.size < 1 or self.size % 2 == 0:
            raise ValueError(f"size must be odd and positive, got {self.size}")


@register_attention(Pooling)
class PoolingKernel(GridKernel):
    """Pooling of the values of a host."""

    def __init__(self, config: Pooling, num_heads: int, head_dim: int, value_dim: int) -> None:
        super().__init__(config, num_heads, head_dim, value_dim)
        self.size = config.size

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`; raises ValueError as :meth:`GridKernel.require_grid`."""
        grid, mask = self.require_grid(inputs), inputs.key_mask
        image = tokens_to_image(inputs.value, grid)
        shown = None if mask is None else mask.unflatten(1, grid).unsqueeze(1)
        return image_to_tokens(pooling(image, self.size, shown), self.num_heads)


@register_image_mixer(Pooling)
class PoolingMixer(ImageMixer):
    """PoolFormer's token mixer.

    Args:
        dim: C.
        config: None means a window of 3×3.
        proj_drop: dropout probability on the result.
    """

    def __init__(self, dim: int, config: Pooling | None = None, *, proj_drop: float = 0.0) -> None:
        super().__init__()
        self.config = config or Pooling()
        self.size = self.config.size
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.proj_drop(pooling(x, self.size))
