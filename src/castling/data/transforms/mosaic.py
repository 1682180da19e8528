"""Mosaic: four images around a corner (Bochkovskiy et al., 2020, "YOLOv4", section 3.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from castling.data.sample import Sample
from castling.data.transforms.base import Size
from castling.data.transforms.scene import Scene

_CORNER = 0.5, 1.5
_WINDOW = 0.5, 1.0


def mosaic(samples: Sequence[Sample], size: Size) -> Scene:
    """A random part of a canvas on which four images meet in a random corner.

    The canvas has twice the sides of ``size``; the corner lies in its middle half. Each image keeps
    its aspect ratio, touches the corner, and is at most as large as ``size``. The part shown holds
    the corner; its sides are between half the canvas's, so that nothing is scaled again, and all.

    Args:
        samples: four: top left, top right, bottom left, bottom right.
        size: (height, width) of the image that will be made of it, for its aspect ratio.
    """
    height, width = size
    draws = torch.rand(5).tolist()
    low, high = _CORNER
    row, column = (
        round(side * (low + (high - low) * draw))
        for side, draw in zip(size, draws[:2], strict=True)
    )
    pieces = []
    for place, sample in enumerate(samples):
        below, beside = divmod(place, 2)
        (piece,) = Scene.of(sample).pieces
        old_height, old_width = sample.original_size
        scale = min(height / old_height, width / old_width)
        placement = piece.placement.scaled(scale, scale).moved(
            row if below else row - scale * old_height,
            column if beside else column - scale * old_width,
        )
        pieces.append(piece._replace(placement=placement))
    low, high = _WINDOW
    share = 2 * (low + (high - low) * draws[2])
    shown = max(1, round(share * height)), max(1, round(share * width))
    top, left = (
        round(first + (last - first) * draw)
        for side, part, corner, draw in zip(size, shown, (row, column), draws[3:], strict=True)
        for first, last in [(max(0, corner - part), min(corner, 2 * side - part))]
    )
    return Scene((2 * height, 2 * width), tuple(pieces)).window(top, left, *shown)
