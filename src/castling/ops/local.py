"""Local residuals: depthwise convolutions of the values, along the tokens or on their grid."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class LocalResidual(NamedTuple):
    """A depthwise convolution of the values, to be added to an attention's output.

    Attributes:
        weight: (H, 1, taps, 1), taps along the flattened tokens shared by a head's channels; or
            (H·d_v, 1, k, k), one filter per channel on the grid.
        grid: (h, w) of the tokens after the prefix; None for taps along the tokens.
        num_prefix_tokens: tokens before the grid; their output is zero. 0 without a grid.
    """

    weight: Tensor
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int = 0


def check_local(
    weight: tuple[int, ...],
    value: tuple[int, ...],
    grid: tuple[int, ...],
    prefix: int,
) -> None:
    """Raise ValueError unless filters, grid and prefix fit the values.

    Args:
        weight: shape of the filters.
        value: (B, N, H, d_v).
        grid: (h, w), or () for taps along the tokens.
        prefix: tokens before the grid.
    """
    _, tokens, heads, dim = value
    size = weight[2] if len(weight) == 4 else 1
    expected = (heads * dim, 1, size, size) if grid else (heads, 1, size, 1)
    if tuple(weight) != expected or size % 2 == 0:
        raise ValueError(f"local weights must be {expected}, of odd size; got {tuple(weight)}")
    if not grid:
        if prefix:
            raise ValueError(f"{prefix} prefix tokens need a grid")
        return
    if len(grid) != 2:
        raise ValueError(f"a grid is (height, width), got {tuple(grid)}")
    height, width = grid
    for side in (height, width, prefix):
        if isinstance(side, int) and side < 0:
            raise ValueError(f"a grid and its prefix cannot be negative, got {(*grid, prefix)}")
    if height * width + prefix != tokens:
        raise ValueError(
            f"grid {height}×{width} with {prefix} prefix tokens does not make {tokens} tokens"
        )


def local_residual(value: Tensor, local: LocalResidual) -> Tensor:
    """The convolution with zero padding: (B, N, H, d_v) -> (B, N, H, d_v).

    Raises:
        ValueError: as :func:`check_local`.
    """
    check_local(local.weight.shape, value.shape, local.grid or (), local.num_prefix_tokens)
    weight = local.weight.to(value.dtype)
    if local.grid is None:
        heads, _, taps, _ = weight.shape
        out = F.conv2d(value.transpose(1, 2), weight, padding=(taps // 2, 0), groups=heads)
        return out.transpose(1, 2)
    batch, _, heads, dim = value.shape
    height, width = local.grid
    prefix = local.num_prefix_tokens
    image = value[:, prefix:].reshape(batch, height, width, heads * dim)
    out = F.conv2d(
        image.permute(0, 3, 1, 2), weight, padding=weight.shape[-1] // 2, groups=heads * dim
    )
    out = out.permute(0, 2, 3, 1).reshape(batch, height * width, heads, dim)
    return F.pad(out, (0, 0, 0, 0, prefix, 0)) if prefix else out


def visible_residual(
    value: Tensor,
    local: LocalResidual,
    positions: Tensor,
    grid: tuple[int, int],
    num_prefix_tokens: int,
) -> Tensor:
    """The convolution where only some tokens are there; hidden neighbours count as zero.

    Values are scattered into zeros at their places, convolved, and gathered: equal to a sparse
    convolution of the visible tokens, whose order does not matter.

    Args:
        value: (B, P + V, H, d_v), the prefix first.
        local: as of the whole sequence.
        positions: (B, V) int64, distinct places in [0, h·w) of the tokens behind the prefix.
        grid: (h, w) of the whole image.
        num_prefix_tokens: P.

    Returns:
        (B, P + V, H, d_v).

    Raises:
        ValueError: as many places as tokens are needed; as :func:`check_local`.
    """
    prefix = num_prefix_tokens
    batch, tokens, heads, dim = value.shape
    if tuple(positions.shape) != (batch, tokens - prefix):
        raise ValueError(
            f"positions must be one place for each token behind the prefix, "
            f"{(batch, tokens - prefix)}; got {tuple(positions.shape)}"
        )
    first = torch.arange(prefix, device=positions.device).expand(batch, prefix)
    index = torch.cat([first, positions + prefix], dim=1)[:, :, None, None].expand_as(value)
    whole = value.new_zeros(batch, prefix + grid[0] * grid[1], heads, dim)
    return local_residual(whole.scatter(1, index, value), local).gather(1, index)
