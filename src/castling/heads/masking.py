"""Which parts of an image are hidden, and images as patches of pixels."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from castling.utils.randomness import Keys, uniform

Grid = tuple[int, int]


class Masks(NamedTuple):
    """What is hidden of each image, of the cells of a grid row by row.

    Attributes:
        hidden: (B, h·w) boolean.
        visible: (B, V) int64, places of the others in ascending order.
    """

    hidden: Tensor
    visible: Tensor


def random_masks(keys: Keys, grid: Grid, ratio: float, unit: int, device: torch.device) -> Masks:
    """Hide the same share of every image, chosen by its key.

    Args:
        keys: (B,).
        grid: (h, w) in cells.
        ratio: share to hide; at least one unit is hidden and one is not.
        unit: sides of what is hidden or seen as one, in cells.
        device: of the masks.

    Raises:
        ValueError: the grid is no whole number of units, or a single one.
    """
    height, width = grid
    if height % unit or width % unit or height * width <= unit * unit:
        raise ValueError(
            f"a grid of {height}×{width} cells cannot be masked in units of {unit}×{unit}: choose "
            "a larger data.transform.image_size, its sides multiples of the unit, or a smaller "
            "model.head.unit"
        )
    down, across = height // unit, width // unit
    count = down * across
    # Rounded first: 10·(1 − 0.9) is a little less than 1.
    seen = min(max(int(round(count * (1 - ratio), 6)), 1), count - 1)
    order = uniform(keys[:, None], np.arange(count)).argsort(axis=1, kind="stable")
    hidden = torch.ones(len(keys), count, dtype=torch.bool)
    hidden.scatter_(1, torch.from_numpy(order[:, :seen].copy()), False)
    cells = hidden.view(-1, down, across).repeat_interleave(unit, 1).repeat_interleave(unit, 2)
    hidden = cells.flatten(1)
    visible = (~hidden).nonzero()[:, 1].view(len(keys), -1)
    return Masks(hidden.to(device), visible.to(device))


def pixels_of(cells: Tensor, grid: Grid, side: int) -> Tensor:
    """(B, h·w) of cells of ``side`` pixels → (B, 1, H, W)."""
    image = cells.view(-1, 1, *grid)
    return image.repeat_interleave(side, 2).repeat_interleave(side, 3)


def patches_of(images: Tensor, side: int) -> Tensor:
    """(B, 3, H, W) → (B, h·w, side·side·3): rows, columns, then colours of each patch."""
    batch, channels, height, width = images.shape
    split = images.reshape(batch, channels, height // side, side, width // side, side)
    return split.permute(0, 2, 4, 3, 5, 1).reshape(batch, -1, side * side * channels)


def images_of(patches: Tensor, grid: Grid, side: int) -> Tensor:
    """Undo :func:`patches_of`."""
    height, width = grid
    split = patches.reshape(len(patches), height, width, side, side, -1)
    return split.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), -1, height * side, width * side)


def sincos_positions(grid: Grid, width: int, device: torch.device | None = None) -> Tensor:
    """(h·w, width) fixed 2-D positions: sines and cosines of the column, then of the row.

    Vaswani et al. (2017), §3.5, a half of the channels for each side (MAE, appendix A.1).

    Args:
        grid: (h, w).
        width: of the table, a multiple of 4.
        device: of the table.
    """
    rates = 10000 ** -(torch.arange(width // 4, device=device) / (width // 4))
    rows, columns = (torch.arange(side, device=device)[:, None] * rates for side in grid)
    x = torch.cat([columns.sin(), columns.cos()], 1).repeat(grid[0], 1)
    y = torch.cat([rows.sin(), rows.cos()], 1).repeat_interleave(grid[1], 0)
    return torch.cat([x, y], 1)
