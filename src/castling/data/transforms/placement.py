"""Where the pixels of an image lie on a canvas: crops, zooms and mirrors composed to one mapping.

Every geometric step of detection keeps the axes, so any chain of them is one scale and one offset
per axis. Images are therefore resampled once, whatever the chain, and boxes and masks follow the
very same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from castling.data.decode import image_tensor, pillow_image
from castling.data.detection.mask_window import decode_window
from castling.data.detection.masks import Rle
from castling.data.transforms.base import Size

#: top, left, bottom, right; pixels.
Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True)
class Placement:
    """(y, x) of the image lies at (scale·(y, x) + offset) of the canvas.

    Attributes:
        scale: canvas pixels per image pixel, (y, x); below 0 in x where mirrored.
        offset: (y, x) of the image's corner on the canvas.
        window: the part of the canvas that shows the image.
    """

    scale: tuple[float, float]
    offset: tuple[float, float]
    window: Rectangle

    @classmethod
    def whole(cls, size: Size) -> Self:
        """An image of (height, width) that is the canvas itself."""
        return cls((1.0, 1.0), (0.0, 0.0), (0.0, 0.0, float(size[0]), float(size[1])))

    def cut(self, part: Rectangle) -> Self:
        """Show no more than the given part of the canvas."""
        top, left, bottom, right = self.window
        top, left = max(top, part[0]), max(left, part[1])
        bottom, right = max(top, min(bottom, part[2])), max(left, min(right, part[3]))
        return replace(self, window=(top, left, bottom, right))

    def moved(self, down: float, right: float) -> Self:
        """The image elsewhere on the canvas."""
        return replace(
            self,
            offset=(self.offset[0] + down, self.offset[1] + right),
            window=_shifted(self.window, down, right),
        )

    def scaled(self, rows: float, columns: float) -> Self:
        """The canvas with its image scaled."""
        top, left, bottom, right = self.window
        return replace(
            self,
            scale=(self.scale[0] * rows, self.scale[1] * columns),
            offset=(self.offset[0] * rows, self.offset[1] * columns),
            window=(top * rows, left * columns, bottom * rows, right * columns),
        )

    def mirrored(self, width: float) -> Self:
        """The canvas of ``width`` with its image mirrored left to right."""
        top, left, bottom, right = self.window
        return replace(
            self,
            scale=(self.scale[0], -self.scale[1]),
            offset=(self.offset[0], width - self.offset[1]),
            window=(top, width - right, bottom, width - left),
        )

    def snapped(self, size: Size) -> Self:
        """The window rounded to whole pixels of a canvas of (height, width).

        Less than a pixel of scale changes, so that the window shows the same part of the image.
        """
        top, left, bottom, right = self.window
        y0, y1, scale_y, offset_y = _snap(top, bottom, size[0], self.scale[0], self.offset[0])
        x0, x1, scale_x, offset_x = _snap(left, right, size[1], self.scale[1], self.offset[1])
        return replace(
            self, scale=(scale_y, scale_x), offset=(offset_y, offset_x), window=(y0, x0, y1, x1)
        )

    @property
    def empty(self) -> bool:
        """Whether nothing of the image shows."""
        top, left, bottom, right = self.window
        return bottom <= top or right <= left

    def source(self, rectangle: Rectangle) -> Rectangle:
        """The part of the image that lies in a rectangle of the canvas."""
        (scale_y, scale_x), (offset_y, offset_x) = self.scale, self.offset
        top, left, bottom, right = rectangle
        rows = (top - offset_y) / scale_y, (bottom - offset_y) / scale_y
        columns = sorted(((left - offset_x) / scale_x, (right - offset_x) / scale_x))
        return rows[0], columns[0], rows[1], columns[1]

    def map_boxes(self, boxes: Tensor) -> tuple[Tensor, Tensor]:
        """Boxes on the canvas: whole, and cut to the window.

        Args:
            boxes: (n, 4) x1, y1, x2, y2 in pixels of the image.
        """
        scale = boxes.new_tensor([self.scale[1], self.scale[0]] * 2)
        offset = boxes.new_tensor([self.offset[1], self.offset[0]] * 2)
        mapped = boxes * scale + offset
        if self.scale[1] < 0:
            mapped = mapped[:, [2, 1, 0, 3]]
        top, left, bottom, right = self.window
        low, high = boxes.new_tensor([left, top]), boxes.new_tensor([right, bottom])
        corners = mapped.view(-1, 2, 2)
        return mapped, torch.minimum(torch.maximum(corners, low), high).view(-1, 4)

    def draw(
        self, canvas: Tensor, pixels: Tensor, original: Size, resampling: Image.Resampling
    ) -> None:
        """Paint the image on the canvas, in place; the placement must be snapped.

        Args:
            canvas: (C, H, W) uint8; C is 3, or 1 for a map of labels.
            pixels: (C, h, w) uint8, the image, perhaps at a smaller size.
            original: (height, width) of the image that the placement counts in.
            resampling: Pillow's filter.
        """
        if self.empty:
            return
        top, left, bottom, right = map(round, self.window)
        factors = pixels.shape[1] / original[0], pixels.shape[2] / original[1]
        part, box = _touched(self.source(self.window), factors, pixels.shape[1:])
        size = (right - left, bottom - top)
        seen = pixels[:, part[0] : part[2], part[1] : part[3]]
        image = pillow_image(seen) if len(seen) == 3 else Image.fromarray(seen[0].numpy())
        if image.size != size or box != (0, 0, *image.size):
            image = image.resize(size, resampling, box=box)
        drawn = torch.from_numpy(np.array(image)[None]) if len(seen) == 1 else image_tensor(image)
        drawn = drawn.as_subclass(Tensor)
        canvas[:, top:bottom, left:right] = drawn.flip(2) if self.scale[1] < 0 else drawn

    def draw_mask(self, canvas: Tensor, rle: Rle, box: Tensor) -> None:
        """Paint an object's mask on the canvas, in place; the placement must be snapped.

        A pixel belongs to the object where at least half of it does.

        Args:
            canvas: (H, W) uint8.
            rle: the mask at the original size.
            box: (4,) of the object, cut to the window: nothing is painted outside.
        """
        x1, y1, x2, y2 = box.tolist()
        # A pixel more at each side: polygons reach beyond the box by a fraction of one.
        around = self.cut(
            (math.floor(y1) - 1, math.floor(x1) - 1, math.ceil(y2) + 1, math.ceil(x2) + 1)
        )
        if around.empty:
            return
        top, left, bottom, right = map(round, around.window)
        part, box_in_part = _touched(self.source(around.window), (1.0, 1.0), rle["size"])
        grey = Image.fromarray(decode_window(rle, *part) * np.uint8(255))
        drawn = grey.resize((right - left, bottom - top), _MASK_FILTER, box=box_in_part)
        mask = torch.from_numpy(np.asarray(drawn) > 127)
        canvas[top:bottom, left:right] = mask.flip(1) if self.scale[1] < 0 else mask


_MASK_FILTER = Image.Resampling.BILINEAR


def _shifted(rectangle: Rectangle, down: float, right: float) -> Rectangle:
    top, left, bottom, end = rectangle
    return top + down, left + right, bottom + down, end + right


def _snap(
    start: float, stop: float, limit: int, scale: float, offset: float
) -> tuple[int, int, float, float]:
    """An interval rounded to whole pixels, and the mapping that takes the same image part there."""
    first, last = max(0, round(start)), min(limit, round(stop))
    if last <= first or stop <= start:
        return first, first, scale, offset
    stretch = (last - first) / (stop - start)
    return first, last, scale * stretch, first + (offset - start) * stretch


def _touched(
    rectangle: Rectangle, factors: tuple[float, float], size: Sequence[int]
) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float]]:
    """The pixels that a part of an image touches.

    Args:
        rectangle: of the image.
        factors: stored pixels per pixel of the image, (y, x).
        size: (height, width) of the stored image.

    Returns:
        top, left, bottom, right of the pixels; and left, upper, right, lower of the rectangle among
        them, as Pillow counts.
    """
    (rows, columns), (top, left, bottom, right), (height, width) = factors, rectangle, size
    top, bottom = _within(top * rows, height), _within(bottom * rows, height)
    left, right = _within(left * columns, width), _within(right * columns, width)
    y0, x0 = min(int(top), height - 1), min(int(left), width - 1)
    y1, x1 = max(y0 + 1, math.ceil(bottom)), max(x0 + 1, math.ceil(right))
    return (y0, x0, y1, x1), (left - x0, top - y0, right - x0, bottom - y0)


def _within(value: float, limit: int) -> float:
    """``value`` in [0, limit]; whole where only rounding of floats keeps it from being so."""
    whole = round(value)
    value = float(whole) if abs(value - whole) < 1e-6 * max(1, limit) else value
    return min(max(value, 0.0), float(limit))
