"""Local residuals: a depthwise convolution of the values, added after normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.attention.config import AttentionConfig


class TokenConv(nn.Module):
    """Taps along the flattened tokens, one filter per head, shared by its channels.

    As in the Castling-ViT reference (``Conv2d(heads, heads, (9, 1))`` on [B, heads, N, d]); row
    ends of the image run into each other and the class token takes part: for parity.

    Args:
        num_heads: H.
        kernel_size: number of taps, odd.
    """

    def __init__(self, num_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, 1, kernel_size, 1))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(
        self, value: Tensor, grid: tuple[int, int] | None, num_prefix_tokens: int
    ) -> Tensor:
        """(B, N, H, d_v) -> (B, N, H, d_v)."""
        heads, _, taps, _ = self.weight.shape
        out = F.conv2d(
            value.transpose(1, 2), self.weight.to(value.dtype), padding=(taps // 2, 0), groups=heads
        )
        return out.transpose(1, 2)


class GridConv(nn.Module):
    """k×k depthwise convolution on the (h, w) grid, one filter per channel; prefix tokens get zero.

    Args:
        channels: H·d_v.
        kernel_size: k, odd.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, kernel_size))
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def forward(
        self, value: Tensor, grid: tuple[int, int] | None, num_prefix_tokens: int
    ) -> Tensor:
        """(B, P + h·w, H, d_v) -> the same; raises ValueError when ``grid`` does not fit."""
        batch, tokens, heads, dim = value.shape
        if grid is None:
            raise ValueError(
                'local="grid2d" needs to know the grid: pass grid=(height, width) in tokens, or '
                'use local="token1d" or "none"'
            )
        height, width = grid
        if height * width + num_prefix_tokens != tokens:
            raise ValueError(
                f"grid {height}×{width} with {num_prefix_tokens} prefix tokens does not make "
                f"{tokens} tokens"
            )
        image = value[:, num_prefix_tokens:].reshape(batch, height, width, heads * dim)
        weight = self.weight.to(value.dtype)
        out = F.conv2d(
            image.permute(0, 3, 1, 2), weight, padding=weight.shape[-1] // 2, groups=heads * dim
        )
        out = out.permute(0, 2, 3, 1).reshape(batch, height * width, heads, dim)
        return F.pad(out, (0, 0, 0, 0, num_prefix_tokens, 0)) if num_prefix_tokens else out


def build_local_residual(
    config: AttentionConfig, num_heads: int, value_dim: int
) -> TokenConv | GridConv | None:
    """The local residual that ``config`` asks for, or None."""
    if config.local == "token1d":
        return TokenConv(num_heads, config.local_kernel_size or 9)
    if config.local == "grid2d":
        return GridConv(num_heads * value_dim, config.local_kernel_size or 3)
    return None
