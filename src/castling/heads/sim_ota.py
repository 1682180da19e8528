"""SimOTA: which points of the feature maps learn to predict which object.

Ge et al., "YOLOX" (arXiv 2107.08430), §2.1, with PicoDet's costs (arXiv 2111.00902, §3.3): each
object takes its k cheapest points, k being the summed overlap of its ten best boxes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torchvision.ops import box_iou, generalized_box_iou

from castling.heads.varifocal import varifocal_negative, varifocal_positive

#: Added to the cost of a point outside an object or far from its centre: above any other cost, and
#: small enough that the order of the others is kept: an object too small to have a point inside
#: gets the best of those around it. (In float32 the authors' 1e8 rounds their costs away.)
_OUTSIDE = 1e5


class Assignment(NamedTuple):
    """The points of an image that learn an object.

    Attributes:
        points: (p,) int64, their positions, ascending.
        objects: (p,) int64, the object of each.
    """

    points: Tensor
    objects: Tensor


@dataclass(frozen=True)
class SimOTA:
    """Assigns points to the objects of an image.

    Cost of a point for an object: varifocal loss over all classes + ``iou_weight``·(1 − GIoU), and
    a large number where the point is outside the object, or further than ``radius`` strides from
    its centre. A point claimed by several objects goes to the one to which it is cheapest.

    Attributes:
        radius: in strides.
        candidates: how many of an object's best overlaps are summed to its number of points.
        iou_weight: of the second term.
    """

    radius: float = 2.5
    candidates: int = 10
    iou_weight: float = 6.0

    @torch.no_grad()
    def __call__(
        self,
        logits: Tensor,
        predicted: Tensor,
        points: Tensor,
        strides: Tensor,
        boxes: Tensor,
        labels: Tensor,
    ) -> Assignment:
        """Assign the points of one image.

        Args:
            logits: (P, K) of classes.
            predicted: (P, 4) boxes x1, y1, x2, y2 in pixels.
            points: (P, 2) x, y in pixels.
            strides: (P,) in pixels.
            boxes: (G, 4) of the objects, in pixels.
            labels: (G,) int64.
        """
        near = _inside(points, boxes)
        reach = self.radius * strides[:, None]
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        central = (points[:, None, 0] - middle[:, 0]).abs() < reach
        central &= (points[:, None, 1] - middle[:, 1]).abs() < reach
        (possible,) = (near.any(1) | central.any(1)).nonzero(as_tuple=True)
        if not len(possible):
            return Assignment(possible, possible)
        outside = ~(near & central)[possible]
        overlap = box_iou(predicted[possible], boxes)
        cost = _class_cost(logits[possible], labels, overlap)
        cost += self.iou_weight * (1 - generalized_box_iou(predicted[possible], boxes))
        if cost.device.type != "mps":  # which has no float64; there costs are told apart by 0.01
            cost = cost.double()
        cost = cost + _OUTSIDE * outside
        return _assign(possible, cost, overlap, min(self.candidates, len(possible)))


def _inside(points: Tensor, boxes: Tensor) -> Tensor:
    """(P, G) whether a point lies strictly inside a box."""
    x, y = points[:, None, 0], points[:, None, 1]
    return (x > boxes[:, 0]) & (y > boxes[:, 1]) & (x < boxes[:, 2]) & (y < boxes[:, 3])


def _class_cost(logits: Tensor, labels: Tensor, overlap: Tensor) -> Tensor:
    """(P, G) varifocal loss of a point's K logits if it learned an object.

    All classes but the object's are negatives, so their sum over classes is taken once.
    """
    of_class = logits[:, labels]
    negative = varifocal_negative(of_class)
    positive = torch.where(overlap > 0, varifocal_positive(of_class, overlap), negative)
    return varifocal_negative(logits).sum(1, keepdim=True) - negative + positive


def _assign(possible: Tensor, cost: Tensor, overlap: Tensor, candidates: int) -> Assignment:
    """The k cheapest points of each object; disputes are decided by cost."""
    count = overlap.topk(candidates, dim=0).values.sum(0).int().clamp(min=1)
    cheapest = cost.topk(candidates, dim=0, largest=False).indices
    ranks = torch.arange(candidates, device=cost.device)[:, None]
    chosen = torch.zeros_like(cost, dtype=torch.bool).scatter_(0, cheapest, ranks < count)
    claims = chosen.sum(1)
    objects = chosen.to(torch.uint8).argmax(1)
    disputed = claims > 1
    objects[disputed] = cost[disputed].argmin(1)
    taken = claims > 0
    return Assignment(possible[taken], objects[taken])
