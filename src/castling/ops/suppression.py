"""Non-maximum suppression of a batch: one operator of fixed shapes, whatever is kept.

torchvision's takes the boxes of one image and returns as many as are left, so a graph of it cannot
have a free batch. This one returns the best so many of each image. It calls torchvision for every
image and class; ONNX files get ONNX's own operator (``castling.export.onnx_operators``).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import nms

from castling.ops.backends import forced_backend
from castling.ops.operators import library


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, iou: float, classes: int, limit: int
) -> tuple[Tensor, Tensor]:
    """The best candidates of each image after greedy suppression within each class.

    From the best score down, a candidate is kept unless its overlap (intersection over union) with
    one of its class that was kept before is above ``iou``. There is no gradient.

    Args:
        boxes: (B, N, 4) x1, y1, x2, y2.
        scores: (B, N); candidates of 0 and less are not kept.
        labels: (B, N) int64 in [0, classes).
        iou: largest overlap of two boxes of a class.
        classes: number of classes.
        limit: n, how many are returned.

    Returns:
        scores (B, n) of those kept, best first, 0 where there are no more; and their positions
        (B, n) among the N, any where there are no more.
    """
    boxes, scores = boxes.detach(), scores.detach()
    if scores.shape[1] < limit:
        missing = limit - scores.shape[1]
        boxes = pad(boxes, (0, 0, 0, missing))
        scores, labels = pad(scores, (0, missing)), pad(labels, (0, missing))
    if forced_backend() == "naive":
        return naive_suppress(boxes, scores, labels, iou, limit)
    found: tuple[Tensor, Tensor] = torch.ops.castling.suppress(
        boxes, scores, labels, iou, classes, limit
    )
    return found


def naive_suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, limit: int
) -> tuple[Tensor, Tensor]:
    """:func:`suppress` in basic operators of fixed shapes: take the best one, ``limit`` times."""
    left = scores.clamp(min=0)
    places = torch.arange(scores.shape[1], device=scores.device)
    found: list[tuple[Tensor, Tensor]] = []
    for _ in range(limit):
        score, best = left.max(dim=1, keepdim=True)
        found.append((score, best))
        box = boxes.gather(1, best[..., None].expand(-1, -1, 4))
        beaten = (labels == labels.gather(1, best)) & (_overlap(boxes, box) > iou)
        left = left.masked_fill(beaten | (places == best), 0)
    return torch.cat([each[0] for each in found], 1), torch.cat([each[1] for each in found], 1)


def _overlap(boxes: Tensor, box: Tensor) -> Tensor:
    """(B, N) intersection over union of boxes (B, N, 4) with one of each image, (B, 1, 4)."""
    low = torch.maximum(boxes[..., :2], box[..., :2])
    high = torch.minimum(boxes[..., 2:], box[..., 2:])
    shared = (high - low).clamp(min=0).prod(-1)
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(-1) + (box[..., 2:] - box[..., :2]).prod(-1)
    return shared / (areas - shared)


def _suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int, limit: int
) -> tuple[Tensor, Tensor]:
    kept = torch.zeros_like(scores)
    for image in range(len(boxes)):
        rows = (scores[image] > 0).nonzero()[:, 0]
        for label in labels[image, rows].unique():
            some = rows[labels[image, rows] == label]
            best = some[nms(boxes[image, some], scores[image, some], iou)]
            kept[image, best] = scores[image, best]
    found = kept.sort(dim=1, descending=True, stable=True)
    return found.values[:, :limit].contiguous(), found.indices[:, :limit].contiguous()


def _suppress_fake(
    boxes: Tensor, scores: Tensor, labels: Tensor, iou: float, classes: int, limit: int
) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], limit)
    return scores.new_empty(shape), labels.new_empty(shape)


library.define(
    "suppress(Tensor boxes, Tensor scores, Tensor labels, float iou, int classes, int limit) "
    "-> (Tensor, Tensor)"
)
library.impl("suppress", _suppress, "CompositeExplicitAutograd")
torch.library.register_fake("castling::suppress", _suppress_fake, lib=library)
