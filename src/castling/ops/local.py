"""Local residuals: depthwise convolutions of the values, along the tokens or on their grid."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor
from torch.nn import functional as F


class LocalResidual(NamedTuple):
    """A depthwise convolution of the values, to be added to an attention's output.

    Attributes:
        weight: (H, 1, taps, 1), taps along the flattened tokens shared by a head's channels; or
            (H·d_v, 1, k, k), one filter per channel on the grid.
        grid: (h, w) of the tokens behind the prefix; None for taps along the tokens.
        num_prefix_tokens: tokens in front of the grid; they get zero. 0 without a grid.
    """

    weight: Tensor
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int = 0


def check_local(value: Tensor, local: LocalResidual) -> None:
    """Raise ValueError unless grid and prefix make the tokens of ``value``."""
    if local.grid is None:
        return
    height, width = local.grid
    sides = (height, width, local.num_prefix_tokens)
    if any(isinstance(side, int) and side < 0 for side in sides):
        raise ValueError(f"a grid and its prefix cannot be negative, got {sides}")
    if height * width + local.num_prefix_tokens != value.shape[1]:
        raise ValueError(
            f"grid {height}×{width} with {local.num_prefix_tokens} prefix tokens does not make "
            f"{value.shape[1]} tokens"
        )


def local_residual(value: Tensor, local: LocalResidual) -> Tensor:
    """The convolution alone: (B, N, H, d_v) -> (B, N, H, d_v), zeros outside of the image.

    Raises:
        ValueError: the grid does not make the tokens.
    """
    check_local(value, local)
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
