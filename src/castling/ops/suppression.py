"""Non-maximum suppression of batches: per image and class, the best boxes that do not overlap.

Greedy, in the order of the scores, in three ways that give the same boxes:

- torchvision's kernel, behind the operator ``castling::suppress``, whose outputs have fixed shapes;
- ONNX's ``NonMaxSuppression``, which the exporter puts in the operator's place
  (``castling.export.onnx_operators``);
- as many steps as boxes are wanted, in basic operators: the operator's decomposition, for programs
  that run without castling and for formats without such an operator.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch._decomp import register_decomposition
from torch.nn import functional as F
from torchvision.ops import nms

from castling.ops.backends import naive_is_forced
from castling.ops.operators import library


class Kept(NamedTuple):
    """What is left of a batch, best first.

    Attributes:
        indices: (B, n) int64, position among the candidates; 0 where there is none.
        scores: (B, n), 0 where there is none.
    """

    indices: Tensor
    scores: Tensor


def suppress(
    boxes: Tensor, scores: Tensor, labels: Tensor, *, threshold: float, keep: int, num_classes: int
) -> Kept:
    """Greedy non-maximum suppression: a box goes if a better one of its class overlaps it more.

    Not differentiable.

    Args:
        boxes: (B, N, 4) x1, y1, x2, y2.
        scores: (B, N); candidates of 0 or less are none.
        labels: (B, N) int64 in [0, K).
        threshold: intersection over union above which the worse box goes.
        keep: n, how many are kept at most.
        num_classes: K.
    """
    boxes, scores = boxes.detach().float(), scores.detach().float()
    if scores.shape[1] < keep:
        missing = keep - scores.shape[1]
        boxes = F.pad(boxes, (0, 0, 0, missing))
        scores, labels = F.pad(scores, (0, missing)), F.pad(labels, (0, missing))
    run = _in_steps if naive_is_forced() else torch.ops.castling.suppress
    return Kept(*run(boxes, scores, labels, threshold, keep, num_classes))


def _by_torchvision(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, keep: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    indices = torch.zeros(len(boxes), keep, dtype=torch.int64, device=boxes.device)
    kept = scores.new_zeros(len(boxes), keep)
    for image in range(len(boxes)):
        (some,) = (scores[image] > 0).nonzero(as_tuple=True)
        chosen = some[
            _of_one_image(boxes[image, some], scores[image, some], labels[image, some], threshold)[
                :keep
            ]
        ]
        indices[image, : len(chosen)] = chosen
        kept[image, : len(chosen)] = scores[image, chosen]
    return indices, kept


def _of_one_image(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Positions of the boxes kept, best first.

    Classes are moved apart, so that none overlap; in float64, since float32 would round boxes far
    from the origin.
    """
    if not len(boxes):
        return labels
    if boxes.device.type != "mps":  # which has no float64
        boxes, scores = boxes.double(), scores.double()
    extent = boxes.max() - boxes.min() + 1
    return nms(boxes + (labels * extent)[:, None], scores, threshold)


def _fake(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, keep: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    shape = (scores.shape[0], keep)
    return labels.new_empty(shape), scores.new_empty(shape)


def _in_steps(
    boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float, keep: int, num_classes: int
) -> tuple[Tensor, Tensor]:
    """Each step takes the best box left and drops what overlaps it."""
    x1, y1, x2, y2 = boxes.unbind(-1)
    areas = (x2 - x1) * (y2 - y1)
    left = scores
    indices, values = [], []
    for _ in range(keep):
        value, index = left.max(dim=1, keepdim=True)
        a1, b1, a2, b2, area, label = (
            each.gather(1, index) for each in (x1, y1, x2, y2, areas, labels)
        )
        width = torch.minimum(x2, a2) - torch.maximum(x1, a1)
        height = torch.minimum(y2, b2) - torch.maximum(y1, b1)
        common = width.clamp(min=0) * height.clamp(min=0)
        # By multiplication: no division of 0 by 0 for boxes without area.
        overlaps = common > threshold * (areas + area - common)
        left = left.masked_fill(overlaps & (labels == label), 0).scatter(1, index, 0)
        indices.append(index)
        values.append(value)
    kept = torch.cat(values, dim=1).clamp(min=0)
    return torch.where(kept > 0, torch.cat(indices, dim=1), 0), kept


library.define(
    "suppress(Tensor boxes, Tensor scores, Tensor labels, float threshold, int keep, "
    "int num_classes) -> (Tensor, Tensor)"
)
library.impl("suppress", _by_torchvision, "CompositeExplicitAutograd")
torch.library.register_fake("castling::suppress", _fake, lib=library)
register_decomposition(torch.ops.castling.suppress.default)(_in_steps)
