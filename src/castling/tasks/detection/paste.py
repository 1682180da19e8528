"""From a head's small masks to run-length encodings of the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from castling.data.detection.masks import counts_to_rle

#: From this probability on a pixel belongs to the object.
_INSIDE = 0.5


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> list[dict[str, Any]]:
    """The masks of one image's detections in COCO's compressed run-length encoding.

    Scaled as torchvision's ``paste_masks_in_image`` does, but each within its own box: a canvas of
    the image per mask would not fit for large images.

    Args:
        masks: (n, M, M) probability of the object in its box, on the CPU.
        boxes: (n, 4) x1, y1, x2, y2 in pixels of the image, on the CPU.
        size: (height, width) of the image.
    """
    from torchvision.models.detection.roi_heads import expand_boxes, expand_masks

    if not len(masks):
        return []
    padded, scale = expand_masks(masks[:, None].float(), padding=1)
    corners = expand_boxes(boxes.float(), scale).to(torch.int64).tolist()
    return [_pasted(mask, box, size) for mask, box in zip(padded, corners, strict=True)]


def _pasted(mask: Tensor, box: list[int], size: tuple[int, int]) -> dict[str, Any]:
    left, top, right, bottom = box
    height, width = max(1, bottom - top + 1), max(1, right - left + 1)
    scaled = F.interpolate(mask[None], (height, width), mode="bilinear", align_corners=False)[0, 0]
    rows = slice(max(0, -top), max(0, size[0] - top))
    columns = slice(max(0, -left), max(0, size[1] - left))
    inside = (scaled[rows, columns] >= _INSIDE).numpy()
    return encoded(inside, max(0, top), max(0, left), size)


def encoded(part: NDArray[np.bool_], top: int, left: int, size: tuple[int, int]) -> dict[str, Any]:
    """Compressed run-length encoding of a mask that is False outside a part of the image.

    Args:
        part: (h, w).
        top: row of its first pixel.
        left: column of its first pixel.
        size: (height, width) of the image.
    """
    height, width = size
    columns = np.zeros((part.shape[1], height), dtype=np.int8)  # runs go down the columns
    columns[:, top : top + part.shape[0]] = part.T
    edges = np.flatnonzero(np.diff(columns.ravel(), prepend=0, append=0)) + left * height
    counts = np.diff(edges, prepend=0, append=height * width).tolist()
    if len(counts) > 1 and counts[-1] == 0:  # the last pixel belongs to the object
        counts.pop()
    rle = counts_to_rle(counts, size)
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}
