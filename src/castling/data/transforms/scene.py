"""A training image in the making: one or several images with their objects on a canvas.

Steps change only where things lie (:mod:`castling.data.transforms.placement`); pixels and masks are
made once, at the end. So an image of 10,000 pixels with thousands of masks needs no more memory
than its result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from PIL import Image
from torch import Tensor

from castling.data.detection.masks import unpack_rles
from castling.data.sample import Sample, plain
from castling.data.transforms.base import Size
from castling.data.transforms.placement import Placement, Rectangle

FILL = 114
"""Grey of what no image covers: about the mean of photographs, so about 0 for a network."""

LEAST_VISIBLE = 0.1
"""Share of an object's box that must be left, for the object to be learnt (as in YOLOv5)."""

LEAST_SIDE = 1.0
"""Pixels of a box's shorter side, below which nothing can be learnt from it."""

_WHOLE = 0.999  # share from which an object counts as uncut: boxes of whole ones stay exact


class Piece(NamedTuple):
    """An image on the canvas.

    Attributes:
        sample: with its targets in pixels of the original image, whatever the size of its pixels.
        placement: from pixels of the original image to the canvas.
        rows: (n,) objects that are left.
    """

    sample: Sample
    placement: Placement
    rows: Tensor

    @property
    def boxes(self) -> Tensor:
        """(n, 4) boxes of the objects that are left, in pixels of the original image."""
        return plain(self.sample.target["boxes"])[self.rows]


class Objects(NamedTuple):
    """What a picture shows.

    Attributes:
        image: (3, H, W) uint8.
        boxes: (n, 4) float32.
        labels: (n,) int64.
        masks: (n, H, W) uint8; None where they were not asked for.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


@dataclass(frozen=True, slots=True)
class Scene:
    """Images on a canvas.

    Attributes:
        size: (height, width) of the canvas.
        pieces: later ones lie over earlier ones.
    """

    size: Size
    pieces: tuple[Piece, ...]

    @classmethod
    def of(cls, sample: Sample) -> Self:
        """One image that fills the canvas; crowds are no objects to learn."""
        rows = (~plain(sample.target["iscrowd"])).nonzero()[:, 0]
        size = sample.original_size
        return cls(size, (Piece(sample, Placement.whole(size), rows),))

    @property
    def boxes(self) -> Tensor:
        """(n, 4) boxes of all objects that are left, cut to what is visible."""
        found = [piece.placement.map_boxes(piece.boxes)[1] for piece in self.pieces]
        return torch.cat([torch.zeros(0, 4), *found])

    def window(self, top: int, left: int, height: int, width: int) -> Self:
        """A part of the canvas, or, where it reaches beyond, more than the canvas."""
        part: Rectangle = (0.0, 0.0, float(height), float(width))
        return self._placed((height, width), lambda each: each.moved(-top, -left).cut(part))

    def mirrored(self) -> Self:
        """Left and right exchanged."""
        return self._placed(self.size, lambda each: each.mirrored(self.size[1]))

    def resized(self, size: Size) -> Self:
        """The whole canvas scaled to (height, width)."""
        rows, columns = size[0] / self.size[0], size[1] / self.size[1]
        return self._placed(size, lambda each: each.scaled(rows, columns))

    def keep(self, rows: Tensor) -> Self:
        """Only some objects; ``rows`` are (n,) bool in the order of :attr:`boxes`."""
        parts = rows.split([len(piece.rows) for piece in self.pieces])
        pieces = (
            piece._replace(rows=piece.rows[part])
            for piece, part in zip(self.pieces, parts, strict=True)
        )
        return replace(self, pieces=tuple(pieces))

    def render(self, resampling: Image.Resampling, *, masks: bool) -> Objects:
        """Pixels, and the objects that can be seen in them.

        With masks, the boxes of objects that are cut frame what is left of their masks.

        Args:
            resampling: Pillow's filter for images.
            masks: whether masks are asked for; the samples then have ``segmentation``.
        """
        image = torch.full((3, *self.size), FILL, dtype=torch.uint8)
        empty = torch.zeros((0, *self.size), dtype=torch.uint8) if masks else None
        boxes, labels = [torch.zeros(0, 4)], [torch.zeros(0, dtype=torch.int64)]
        drawn = [] if empty is None else [empty]
        for piece in self.pieces:
            snapped = piece.placement.snapped(self.size)
            piece = piece._replace(placement=snapped)
            sample = piece.sample
            snapped.draw(image, plain(sample.image), sample.original_size, resampling)
            found, cut, rows = _visible(piece)
            if masks:
                drawing = _draw_masks(piece._replace(rows=rows), found, self.size)
                seen = drawing.bool().flatten(1).any(1)
                found, cut, rows, drawing = found[seen], cut[seen], rows[seen], drawing[seen]
                found[cut] = tightened(found[cut], drawing[cut])
                drawn.append(drawing)
            boxes.append(found)
            labels.append(plain(sample.target["labels"])[rows])
        return Objects(
            image, torch.cat(boxes), torch.cat(labels), torch.cat(drawn) if masks else None
        )

    def _placed(self, size: Size, change: Callable[[Placement], Placement]) -> Self:
        pieces = (piece._replace(placement=change(piece.placement)) for piece in self.pieces)
        return replace(self, size=size, pieces=tuple(pieces))


def tightened(boxes: Tensor, masks: Tensor) -> Tensor:
    """Boxes around what is left of objects; sides that the masks reach keep their exact place.

    Args:
        boxes: (n, 4) around the objects.
        masks: (n, H, W), none of them empty.
    """
    from torchvision.ops import masks_to_boxes

    frames = masks_to_boxes(masks)
    frames[:, 2:] += 1  # torchvision gives the last pixel, not where it ends
    return torch.where((frames - boxes).abs() > 1, frames, boxes)


def _visible(piece: Piece) -> tuple[Tensor, Tensor, Tensor]:
    """Of the objects of which enough can be seen: boxes on the canvas, whether cut, and rows."""
    whole, seen = piece.placement.map_boxes(piece.boxes)
    sides = seen[:, 2:] - seen[:, :2]
    share = sides.prod(1) / (whole[:, 2:] - whole[:, :2]).prod(1).clamp(min=1e-12)
    enough = (sides.min(1).values >= LEAST_SIDE) & (share >= LEAST_VISIBLE)
    return seen[enough], (share < _WHOLE)[enough], piece.rows[enough]


def _draw_masks(piece: Piece, boxes: Tensor, size: Size) -> Tensor:
    """(n, H, W) masks of the objects of one image on a canvas of ``size``."""
    found = torch.zeros((len(boxes), *size), dtype=torch.uint8)
    rles = unpack_rles(plain(piece.sample.target["segmentation"])) if len(boxes) else []
    for canvas, row, box in zip(found, piece.rows.tolist(), boxes, strict=True):
        piece.placement.draw_mask(canvas, rles[row], box)
    return found
