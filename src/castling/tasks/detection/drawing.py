"""Boxes and masks drawn on an image, with names and scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from castling.tasks.detection.prediction import Box
from castling.tasks.drawing import Color, enlargement, font_file, letter_size

#: Of objects that are there, whatever their class.
TRUTH: Color = (255, 255, 255)
_ALPHA = 0.45


def draw_objects(
    image: Image.Image,
    boxes: Sequence[Box],
    captions: Sequence[str],
    colors: Sequence[Color],
    masks: Sequence[dict[str, Any]] | None = None,
) -> Image.Image:
    """A copy of an image with objects drawn, the first on top; a small image is enlarged.

    Args:
        image: RGB.
        boxes: (n) x1, y1, x2, y2 in its pixels; parts outside are not drawn.
        captions: written at each box; an empty one is not.
        colors: of each.
        masks: run-length encoding of the first of them or of all; None draws boxes alone.
    """
    if not boxes:
        return image.copy()
    from torchvision.utils import draw_bounding_boxes

    pixels = functional.pil_to_tensor(image)
    order = list(reversed(range(len(boxes))))
    for index in order:
        if masks is not None and index < len(masks):  # truths, which come last, have none
            _draw_mask(pixels, masks[index], boxes[index], colors[index])
    times = enlargement(pixels)
    pixels = pixels.repeat_interleave(times, 1).repeat_interleave(times, 2)
    height, width = pixels.shape[1:]
    side = (width * height) ** 0.5
    corners = torch.tensor([boxes[i] for i in order], dtype=torch.float32) * times
    limits = torch.tensor([width - 1, height - 1] * 2)
    names = [captions[i] or None for i in order]
    pixels = draw_bounding_boxes(
        pixels,
        corners.clamp(min=0).minimum(limits),
        names,
        colors=[colors[i] for i in order],
        width=max(1, round(side / 300)),
        font=font_file(),
        font_size=letter_size(height, width),
        label_colors="black",
        fill_labels=True,
    )
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _draw_mask(pixels: Tensor, rle: dict[str, Any], box: Box, color: Color) -> None:
    """Blend one mask in, in place; within its box, since images may be large."""
    from faster_coco_eval import mask as coco
    from torchvision.utils import draw_segmentation_masks

    height, width = rle["size"]
    left, top = (max(0, int(x) - 1) for x in box[:2])
    right, bottom = min(width, int(box[2]) + 2), min(height, int(box[3]) + 2)
    inside = np.asarray(coco.decode(rle))[top:bottom, left:right].astype(bool)
    if inside.any():
        part = pixels[:, top:bottom, left:right]
        part[:] = draw_segmentation_masks(
            part, torch.from_numpy(inside)[None], alpha=_ALPHA, colors=[color]
        )
