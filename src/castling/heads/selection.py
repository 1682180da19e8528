"""From the scores of all places and classes to the detections of an image, in fixed shapes."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from castling.ops.suppression import suppress


class Pairs(NamedTuple):
    """The best pairs of place and class.

    Attributes:
        scores: (B, n), best first, 0 where there is none.
        places: (B, n) int64.
        labels: (B, n) int64.
    """

    scores: Tensor
    places: Tensor
    labels: Tensor


def best_pairs(scores: Tensor, threshold: float, count: int) -> Pairs:
    """The ``count`` best scores above a threshold.

    Args:
        scores: (B, N, K) of N places and K classes.
        threshold: scores up to it are dropped.
        count: n; N·K may be less.
    """
    classes = scores.shape[-1]
    scores = scores.flatten(1)
    scores = torch.where(scores > threshold, scores, 0)
    # At least as many pairs as are taken, whatever the size of the map.
    scores, pairs = F.pad(scores, (0, count)).topk(count)
    pairs = torch.where(scores > 0, pairs, 0)
    return Pairs(scores, pairs // classes, pairs % classes)


def take(rows: Tensor, index: Tensor) -> Tensor:
    """Rows (B, n, C) of (B, N, C) by their positions (B, n)."""
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def clip_boxes(boxes: Tensor, size: tuple[int, int], valid: Tensor | None) -> Tensor:
    """Boxes (B, n, 4) within the image, or within each image's ``valid`` height and width."""
    if valid is None:
        height, width = size
        x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    else:
        limits = valid.to(boxes.dtype)[:, None, :, None]
        x = boxes[..., 0::2].clamp(min=0).minimum(limits[:, :, 1])
        y = boxes[..., 1::2].clamp(min=0).minimum(limits[:, :, 0])
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def keep_best(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, keep: int, num_classes: int
) -> dict[str, Tensor]:
    """Detections after suppression, as :meth:`castling.heads.Detector.decode` gives them.

    The arguments are those of :func:`castling.ops.suppression.suppress`.
    """
    kept = suppress(boxes, scores, labels, threshold=threshold, keep=keep, num_classes=num_classes)
    there = kept.scores > 0
    return {
        "boxes": take(boxes, kept.indices) * there[..., None],
        "scores": kept.scores,
        "labels": labels.gather(1, kept.indices) * there,
    }
