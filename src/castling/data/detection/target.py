"""What a detection source says about the objects of one image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor
from torchvision import tv_tensors

from castling.data.detection.masks import Rle, pack_masks


def detection_target(
    boxes: ArrayLike,
    labels: ArrayLike,
    size: tuple[int, int],
    *,
    iscrowd: ArrayLike | None = None,
    area: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    rles: Sequence[Rle] | None = None,
) -> dict[str, Tensor]:
    """``Sample.target`` of n objects; n may be 0.

    Args:
        boxes: (n, 4) x1, y1, x2, y2 in pixels.
        labels: (n,) in [0, K).
        size: (height, width) of the image.
        iscrowd: (n,) regions of several objects, neither found nor missed; None: none is.
        area: (n,) pixels² by which objects count as small or large; None: those of the boxes.
        ids: (n,) numbers of the annotations; None: 0.
        rles: masks; None where the data have none.

    Returns:
        ``boxes`` (n, 4) as ``tv_tensors.BoundingBoxes`` XYXY float32; ``labels`` (n,) int64;
        ``iscrowd`` (n,) bool; ``area`` (n,) float32; ``ids`` (n,) int64; with masks
        ``segmentation``, 1-D uint8, see :func:`castling.data.detection.masks.pack_masks`.
    """
    corners = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
    count = len(corners)
    if area is None:
        area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])

    def column(values: ArrayLike | None, dtype: type) -> Tensor:
        return torch.from_numpy(
            np.zeros(count, dtype) if values is None else np.array(values, dtype).reshape(count)
        )

    target: dict[str, Tensor] = {
        "boxes": tv_tensors.BoundingBoxes(
            torch.from_numpy(corners.copy()), format="XYXY", canvas_size=size
        ),
        "labels": column(labels, np.int64),
        "iscrowd": column(iscrowd, np.bool_),
        "area": column(area, np.float32),
        "ids": column(ids, np.int64),
    }
    if rles is not None:
        target["segmentation"] = pack_masks(rles, size)
    return target
