"""The three losses of PicoDet on the points that SimOTA assigns.

Varifocal loss on classes; GIoU and distribution focal loss (Li et al., arXiv 2006.04388, eq. 6) on
boxes, each point weighted by the largest class probability it predicts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou, generalized_box_iou_loss

from castling.heads.detector import DetectionTarget
from castling.heads.picodet_head import boxes_around, distances
from castling.heads.processes import mean_over_processes
from castling.heads.sim_ota import SimOTA
from castling.heads.varifocal import varifocal_loss

_TINY = 1e-6


class Points(NamedTuple):
    """What the head predicts at all P points of all levels.

    Attributes:
        logits: (B, P, K) of classes.
        bins: (B, P, 4·(reg_max + 1)) logits of distances.
        centres: (P, 2) x, y in pixels.
        strides: (P,) in pixels.
    """

    logits: Tensor
    bins: Tensor
    centres: Tensor
    strides: Tensor


def picodet_losses(
    found: Points, targets: Sequence[DetectionTarget], assign: SimOTA, reg_max: int
) -> dict[str, Tensor]:
    """``class``, ``box`` and ``distribution`` losses of a batch, not weighted against each other.

    Args:
        found: by the head.
        targets: objects of each image.
        assign: points to objects.
        reg_max: largest distance, in strides.
    """
    strides = found.strides[:, None]
    predicted = boxes_around(found.centres, distances(found.bins, reg_max) * strides)
    wanted = torch.zeros_like(found.logits)
    images, points, boxes = [], [], []
    for image, target in enumerate(targets):
        if not len(target["labels"]):
            continue
        assigned = assign(
            found.logits[image],
            predicted[image],
            found.centres,
            found.strides,
            target["boxes"],
            target["labels"],
        )
        box = target["boxes"][assigned.objects]
        label = target["labels"][assigned.objects]
        overlap = _aligned_iou(predicted[image, assigned.points].detach(), box)
        wanted[image, assigned.points, label] = overlap.clamp(min=_TINY)
        images.append(torch.full_like(assigned.points, image))
        points.append(assigned.points)
        boxes.append(box)
    positives = sum(len(each) for each in points)
    classes = varifocal_loss(found.logits, wanted).sum()
    losses = {"class": classes / mean_over_processes(classes.new_tensor(positives))}
    if positives:
        at = torch.cat(images), torch.cat(points)
        return losses | _box_losses(found, predicted, at, torch.cat(boxes), reg_max)
    # Every process sums up both denominators, and every parameter has its gradient.
    mean_over_processes(classes.new_zeros(()))
    nothing = found.bins.sum() * 0
    return losses | {"box": nothing, "distribution": nothing}


def _box_losses(
    found: Points,
    predicted: Tensor,
    at: tuple[Tensor, Tensor],
    boxes: Tensor,
    reg_max: int,
) -> dict[str, Tensor]:
    """On the p points ``at`` (image, point), which learn ``boxes`` (p, 4)."""
    weight = found.logits[at].detach().sigmoid().amax(1)
    total = mean_over_processes(weight.sum())
    giou = generalized_box_iou_loss(predicted[at], boxes)
    centres, strides = found.centres[at[1]], found.strides[at[1], None]
    sides = torch.cat((centres - boxes[:, :2], boxes[:, 2:] - centres), dim=1) / strides
    # Just below the last bin, so that there is one on either side.
    sides = sides.clamp(0, reg_max - 0.1)
    distribution = _distribution_focal_loss(found.bins[at].unflatten(1, (4, -1)), sides)
    return {
        "box": (giou * weight).sum() / total,
        "distribution": (distribution.mean(1) * weight).sum() / total,
    }


def _distribution_focal_loss(bins: Tensor, sides: Tensor) -> Tensor:
    """Cross entropy towards the two bins around each distance, in proportion to its nearness.

    Args:
        bins: (p, 4, reg_max + 1) logits.
        sides: (p, 4) distances in [0, reg_max).

    Returns:
        (p, 4).
    """
    lower = sides.floor()
    share = sides - lower
    log = F.log_softmax(bins, dim=-1)
    below, above = (-log.gather(-1, (lower.long() + step)[..., None])[..., 0] for step in (0, 1))
    return below * (1 - share) + above * share


def _aligned_iou(first: Tensor, second: Tensor) -> Tensor:
    """(p,) overlaps of the i-th boxes of (p, 4) and (p, 4)."""
    return box_iou(first[:, None], second[:, None])[:, 0, 0]
