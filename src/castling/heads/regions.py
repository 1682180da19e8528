"""Regions of an image in fixed shapes: (B, n) of them, some of which may be none."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import MultiScaleRoIAlign, roi_align
from torchvision.ops.poolers import LevelMapper

#: Strides and names of the levels that regions are cut from.
STRIDES, LEVELS = (4, 8, 16, 32), ("p2", "p3", "p4", "p5")


class RegionAlign(MultiScaleRoIAlign):
    """Cuts each region from the level that fits its size, into ``side``² places.

    torchvision guesses the strides from the first batch and keeps them: one small image in a padded
    batch would spoil all later ones. They are set here.

    Args:
        side: places along each axis.
    """

    def __init__(self, side: int) -> None:
        super().__init__(list(LEVELS), side, sampling_ratio=2)
        self.scales = [1 / stride for stride in STRIDES]
        self.map_levels = LevelMapper(k_min=2, k_max=5)

    def cut(self, levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """Regions of boxes (B, n, 4) → (B·n, C, side, side).

        In exported graphs every region is cut from every level and the right one chosen, since the
        number of regions of a level is not known there.
        """
        if not torch.compiler.is_exporting():
            found: Tensor = self(levels, list(boxes), [])
            return found
        flat = boxes.flatten(0, 1)
        images = torch.arange(boxes.shape[0], device=boxes.device)[:, None]
        images = images.expand(boxes.shape[:2]).reshape(-1, 1)
        regions = torch.cat([images.to(flat.dtype), flat], 1)
        level = self.map_levels([flat])[:, None, None, None]
        found = torch.zeros((), device=boxes.device)
        for i, (name, scale) in enumerate(zip(LEVELS, self.scales, strict=True)):
            cut = roi_align(levels[name], regions, self.output_size, scale, self.sampling_ratio)
            found = torch.where(level == i, cut, found)
        return found


def move_boxes(coder: Any, deltas: Tensor, boxes: Tensor) -> Tensor:
    """Boxes (B, n, 4) moved and scaled by their deltas (B, n, 4), as torchvision's coder does."""
    moved: Tensor = coder.decode_single(deltas.flatten(0, 1), boxes.flatten(0, 1))
    return moved.view(boxes.shape)


def drop_small(boxes: Tensor, scores: Tensor, side: float) -> Tensor:
    """Scores (B, n), 0 where a box (B, n, 4) is less than ``side`` wide or high."""
    extent = boxes[..., 2:] - boxes[..., :2]
    return torch.where((extent >= side).all(-1), scores, 0)


def used_columns(scores: Tensor) -> int:
    """How many of n columns of scores (B, n), best first, are needed; all in exported graphs."""
    if torch.compiler.is_exporting():
        return scores.shape[1]
    return max(int((scores > 0).sum(1).max()), 1)


def split_images(rows: Tensor, batch: int) -> Tensor:
    """(B·n, …) → (B, n, …)."""
    return rows.view(batch, -1, *rows.shape[1:])
