"""Scores of images by windows and by changed copies of them.

Scores are averaged at the resolution at which the head gives them: sixteen times fewer numbers than
pixels at a stride of 4.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from castling.heads.segmenter import resize_scores

Size = tuple[int, int]
#: Scores (B, K, h, w) of normalised images (B, 3, H, W).
Scores = Callable[[Tensor], Tensor]


class Windows(NamedTuple):
    """Windows over images, in pixels.

    Attributes:
        size: (height, width) of each.
        stride: (down, right) from one to the next; no more than ``size``.
        multiple: that the sides of images, ``size`` and ``stride`` are multiples of.
        exact: whether also images that are smaller are computed in windows of this very size, for
            files of a fixed size: they are padded.
    """

    size: Size
    stride: Size
    multiple: int
    exact: bool = False

    @classmethod
    def rounded(cls, size: Size, stride: Size | None, multiple: int) -> Windows:
        """Windows of at least ``size``, at most ``stride`` apart; None is two thirds of them."""
        height, width = (-(-side // multiple) * multiple for side in size)
        return cls((height, width), _stride((height, width), stride, multiple), multiple)

    @classmethod
    def exactly(cls, size: Size, stride: Size | None, multiple: int) -> Windows:
        """Windows of ``size`` for images whose sides are multiples of ``multiple``."""
        multiple = math.gcd(multiple, *size)
        return cls(size, _stride(size, stride, multiple), multiple, exact=True)


def _stride(size: Size, stride: Size | None, multiple: int) -> Size:
    """No more than was asked for and than the windows, as a multiple."""
    down, right = (
        max(multiple, min(side, wanted) // multiple * multiple)
        for side, wanted in zip(size, stride or [2 * side // 3 for side in size], strict=True)
    )
    return down, right


def window_starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows start along a side; the last one ends with it."""
    last = max(0, side - window)
    return [*range(0, last, stride), last]


def slide(scores: Scores, images: Tensor, windows: Windows, fill: Tensor | None = None) -> Tensor:
    """Scores of images by windows, averaged where they overlap.

    Args:
        scores: computes windows; it is called with the same window of all images.
        images: (B, 3, H, W); what is smaller than a window is computed whole.
        windows: their sizes.
        fill: (3, 1, 1) that smaller images are padded with where windows are exact.

    Returns:
        (B, K, h, w) at the resolution of ``scores``, or of the pixels where windows do not start
        at whole cells of it.
    """
    height, width = images.shape[-2:]
    if windows.exact:
        images = _padded(images, windows.size, fill)
    rows, columns = images.shape[-2:]
    size = (min(windows.size[0], rows), min(windows.size[1], columns))
    total: Tensor | None = None
    cell = (1, 1)
    for top in window_starts(rows, size[0], windows.stride[0]):
        for left in window_starts(columns, size[1], windows.stride[1]):
            part = scores(images[..., top : top + size[0], left : left + size[1]]).float()
            if total is None:
                cell = _cell(size, (part.shape[2], part.shape[3]), windows.multiple)
                total = part.new_zeros(*part.shape[:2], rows // cell[0], columns // cell[1])
                count = part.new_zeros(total.shape[2:])
            part = resize_scores(part, (size[0] // cell[0], size[1] // cell[1]))
            first, second = top // cell[0], left // cell[1]
            place = slice(first, first + part.shape[2]), slice(second, second + part.shape[3])
            total[(..., *place)] += part
            count[place] += 1
    assert total is not None
    averaged = total.div_(count)
    return averaged[..., : -(-height // cell[0]), : -(-width // cell[1])]


def _padded(images: Tensor, size: Size, fill: Tensor | None) -> Tensor:
    """Images of at least ``size``, padded at the bottom and right."""
    height, width = images.shape[-2:]
    if height >= size[0] and width >= size[1]:
        return images
    shape = (*images.shape[:2], max(height, size[0]), max(width, size[1]))
    canvas = images.new_zeros(shape) if fill is None else fill.to(images).expand(shape).clone()
    canvas[..., :height, :width] = images
    return canvas


def _cell(window: Size, scores: Size, multiple: int) -> Size:
    """Pixels of a score along each side where windows start at whole ones, else 1."""
    down, right = (
        side // cells if side % cells == 0 and multiple % (side // cells) == 0 else 1
        for side, cells in zip(window, scores, strict=True)
    )
    return down, right


def augmented(
    scores: Scores,
    probabilities: Callable[[Tensor], Tensor],
    images: Tensor,
    scales: Sequence[float],
    flip: bool,
    multiple: int,
) -> Tensor:
    """(B, K, h, w) class probabilities, averaged over scaled and mirrored copies of images.

    Args:
        scores: of images whose sides are multiples of ``multiple``.
        probabilities: of scores.
        images: (B, 3, H, W).
        scales: factors of the sides.
        flip: also the mirror image at each scale.
        multiple: that sides are rounded to.
    """
    found: list[Tensor] = []
    for scale in scales:
        height, width = (
            max(multiple, round(side * scale / multiple) * multiple) for side in images.shape[-2:]
        )
        scaled = images
        if (height, width) != tuple(images.shape[-2:]):
            scaled = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        found.append(scores(scaled).float())
        if flip:
            found.append(scores(scaled.flip(3)).flip(3).float())
    # On the finest map of all nothing of any of them is lost.
    finest = max(((each.shape[2], each.shape[3]) for each in found), key=lambda size: size[0])
    return torch.stack([probabilities(resize_scores(each, finest)) for each in found]).mean(0)
