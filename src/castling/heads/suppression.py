"""Non-maximum suppression of batches: per image and class, the best boxes that do not overlap.

Two ways to the same boxes: torchvision's kernel, and a loop of as many steps as boxes are wanted,
which has fixed shapes and basic operators only and so goes into every exported graph.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import nms


class Kept(NamedTuple):
    """What is left of a batch, best first.

    Attributes:
        indices: (B, n) int64, position among the candidates; 0 where there is none.
        scores: (B, n), 0 where there is none.
    """

    indices: Tensor
    scores: Tensor


def suppress(boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, keep: int) -> Kept:
    """Greedy non-maximum suppression: a box goes if a better one of its class overlaps it more.

    Args:
        boxes: (B, N, 4) x1, y1, x2, y2.
        scores: (B, N); candidates of 0 or less are none.
        labels: (B, N) int64.
        threshold: intersection over union above which the worse box goes.
        keep: n, how many are kept at most.
    """
    boxes, scores = boxes.float(), scores.float()
    if torch.compiler.is_exporting() or torch._C._get_tracing_state():
        return suppress_in_steps(boxes, scores, labels, threshold=threshold, keep=keep)
    index = torch.zeros(len(boxes), keep, dtype=torch.int64, device=boxes.device)
    kept = scores.new_zeros(len(boxes), keep)
    for image in range(len(boxes)):
        (some,) = (scores[image] > 0).nonzero(as_tuple=True)
        chosen = some[
            _of_one_image(boxes[image, some], scores[image, some], labels[image, some], threshold)[
                :keep
            ]
        ]
        index[image, : len(chosen)] = chosen
        kept[image, : len(chosen)] = scores[image, chosen]
    return Kept(index, kept)


def _of_one_image(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Positions of the boxes kept, best first. Classes are moved apart, so that none overlap."""
    if not len(boxes):
        return labels
    if boxes.device.type != "mps":  # which has no float64
        boxes, scores = boxes.double(), scores.double()
    extent = boxes.max() - boxes.min() + 1
    return nms(boxes + (labels * extent)[:, None], scores, threshold)


def suppress_in_steps(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, keep: int
) -> Kept:
    """As :func:`suppress`: each step takes the best box left and drops what overlaps it."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    areas = (x2 - x1) * (y2 - y1)
    left = scores
    indices, values = [], []
    for _ in range(keep):
        best, index = left.max(dim=1, keepdim=True)
        a1, b1, a2, b2, area, label = (
            each.gather(1, index) for each in (x1, y1, x2, y2, areas, labels)
        )
        width = torch.minimum(x2, a2) - torch.maximum(x1, a1)
        height = torch.minimum(y2, b2) - torch.maximum(y1, b1)
        common = width.clamp(min=0) * height.clamp(min=0)
        # By multiplication: no division of 0 by 0 for boxes without area.
        overlaps = common > threshold * (areas + area - common)
        left = left.masked_fill(overlaps & (labels == label), 0)
        left = left.scatter(1, index, 0)
        indices.append(index)
        values.append(best)
    best = torch.cat(values, dim=1).clamp(min=0)
    return Kept(torch.where(best > 0, torch.cat(indices, dim=1), 0), best)
