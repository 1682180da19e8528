"""Local residuals: a depthwise convolution of the values, added after normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from castling.attention.config import AttentionConfig
from castling.ops.local import LocalResidual, local_residual, visible_residual


class LocalConv(nn.Module):
    """A convolution of the values whose weight can also be passed to an attention operator.

    That is for a plain one only (:func:`castling.utils.plain.is_plain`); others are called.
    """

    weight: nn.Parameter

    def reset_parameters(self) -> None:
        """Initialise as a convolution of PyTorch."""
        nn.init.kaiming_uniform_(self.weight, a=5**0.5)

    def residual(self, grid: tuple[int, int] | None, num_prefix_tokens: int) -> LocalResidual:
        """What an operator needs to add it, for tokens on ``grid`` behind a prefix."""
        raise NotImplementedError

    def forward(
        self,
        value: Tensor,
        grid: tuple[int, int] | None,
        num_prefix_tokens: int,
        positions: Tensor | None = None,
    ) -> Tensor:
        """(B, P + h·w, H, d_v) -> the same; raises ValueError when ``grid`` does not fit.

        With ``positions`` (B, V) only the tokens at these places of the grid are there, as
        (B, P + V, H, d_v); see :func:`castling.ops.local.visible_residual`.
        """
        local = self.residual(grid, num_prefix_tokens)
        if positions is None:
            return local_residual(value, local)
        if grid is None:
            raise ValueError("positions are places on a grid: pass grid=(height, width) in tokens")
        return visible_residual(value, local, positions, grid, num_prefix_tokens)


class TokenConv(LocalConv):
    """Taps along the flattened tokens, one filter per head, shared by its channels.

    As in the Castling-ViT reference (``Conv2d(heads, heads, (9, 1))`` on [B, heads, N, d]); the
    ends of image rows are neighbours, and the class token takes part. For parity.

    Args:
        num_heads: H.
        kernel_size: number of taps, odd.
    """

    def __init__(self, num_heads: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, 1, kernel_size, 1))
        self.reset_parameters()

    def residual(self, grid: tuple[int, int] | None, num_prefix_tokens: int) -> LocalResidual:
        """What an operator needs to add it; ``grid`` and prefix do not matter to it."""
        return LocalResidual(self.weight)


class GridConv(LocalConv):
    """k×k depthwise convolution on the (h, w) grid, one filter per channel; prefix tokens get zero.

    Args:
        channels: H·d_v.
        kernel_size: k, odd.
    """

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, kernel_size, kernel_size))
        self.reset_parameters()

    def residual(self, grid: tuple[int, int] | None, num_prefix_tokens: int) -> LocalResidual:
        """What an operator needs to add it; raises ValueError when the grid is not known."""
        if grid is None:
            raise ValueError(
                'local="grid2d" needs to know the grid: pass grid=(height, width) in tokens, or '
                'use local="token1d" or "none"'
            )
        return LocalResidual(self.weight, grid, num_prefix_tokens)


def build_local_residual(
    config: AttentionConfig, num_heads: int, value_dim: int
) -> LocalConv | None:
    """The local residual that ``config`` asks for, or None."""
    if config.local == "token1d":
        return TokenConv(num_heads, config.local_kernel_size or 9)
    if config.local == "grid2d":
        return GridConv(num_heads * value_dim, config.local_kernel_size or 3)
    return None
