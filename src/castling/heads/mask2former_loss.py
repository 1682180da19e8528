"""The loss of Mask2Former, of labelled pixels alone.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (CVPR 2022),
§3.3 and A: queries are matched to the segments of an image, one for each class in it; each learns
the class and the mask of its segment, the others "no object". Masks are compared at random points.

Imported when it is needed: the terms of the loss and of the matching are transformers'. Ours:

- points are drawn among labelled pixels, and a label between pixels is the mean of the labelled
  ones; without ignored pixels both are as in transformers, to the same random numbers;
- an image without labelled pixels says nothing, not even "no object".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment  # type: ignore[import-untyped]
from torch import Tensor
from torch.nn import functional as F
from transformers.models.mask2former.modeling_mask2former import (
    dice_loss,
    pair_wise_dice_loss,
    pair_wise_sigmoid_cross_entropy_loss,
    sample_point,
    sigmoid_cross_entropy_loss,
)

from castling.heads.mask2former_network import Segments
from castling.heads.processes import mean_over_processes
from castling.utils.labels import IGNORED

#: Candidates per point from which the most uncertain are taken, and the share of such points.
_OVERSAMPLING = 3
_UNCERTAIN = 0.75


class Truth(NamedTuple):
    """The segments of an image.

    Attributes:
        classes: (n,) int64, ascending.
        masks: (n, H, W) bool, the pixels of each class.
        known: (H, W) bool, where a pixel has a label; None where all have one.
    """

    classes: Tensor
    masks: Tensor
    known: Tensor | None


def truth_of(mask: Tensor) -> Truth:
    """One segment for each class in a mask (H, W) of labels."""
    known = mask != IGNORED
    classes = mask[known].unique()
    masks = mask == classes[:, None, None]
    return Truth(classes, masks, None if bool(known.all()) else known)


@dataclass(frozen=True)
class SegmentLoss:
    """Weighted parts of the loss of one layer's segments.

    Attributes:
        class_weight: of the cross entropy of the classes, in the loss and in matching.
        mask_weight: of the binary cross entropy of the masks.
        dice_weight: of the Dice loss of the masks.
        no_object_weight: of the queries without a segment in the mean of the cross entropy.
        points: at which a mask is compared.
    """

    class_weight: float
    mask_weight: float
    dice_weight: float
    no_object_weight: float
    points: int

    def __call__(
        self, found: Segments, truths: Sequence[Truth], class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """``class``, ``mask`` and ``dice``.

        Args:
            found: by the network, for B images.
            truths: of each image; where no pixel is labelled, the image is left out.
            class_weights: (K,) weight of each class, in the cross entropy of the classes; None
                for equal ones.
        """
        labelled = [index for index, truth in enumerate(truths) if len(truth.classes)]
        classes, masks = found.classes[labelled].float(), found.masks[labelled].float()
        truths = [truths[index] for index in labelled]
        pairs = [self._match(*each) for each in zip(classes, masks, truths, strict=True)]
        count = masks.new_tensor(float(sum(len(truth.classes) for truth in truths)))
        cross_entropy, dice = self._masks(masks, truths, pairs, mean_over_processes(count))
        return {
            "class": self.class_weight * self._classes(classes, truths, pairs, class_weights),
            "mask": self.mask_weight * cross_entropy,
            "dice": self.dice_weight * dice,
        }

    @torch.no_grad()
    def _match(self, classes: Tensor, masks: Tensor, truth: Truth) -> tuple[Tensor, Tensor]:
        """Queries (m,) and the segments (m,) that they are to find, at the least total cost."""
        points = draw_points(1, self.points, truth)
        wanted = labels_at(truth, None, points.expand(len(truth.masks), -1, -1))
        logits = _at(masks, points.expand(len(masks), -1, -1))
        cost = (
            self.mask_weight * pair_wise_sigmoid_cross_entropy_loss(logits, wanted)
            - self.class_weight * classes.softmax(-1)[:, truth.classes]
            + self.dice_weight * pair_wise_dice_loss(logits, wanted)
        )
        most = torch.finfo(cost.dtype).max
        rows, columns = linear_sum_assignment(torch.nan_to_num(cost, most, most, most).cpu())
        return torch.as_tensor(rows), torch.as_tensor(columns)

    def _classes(
        self,
        logits: Tensor,
        truths: Sequence[Truth],
        pairs: Sequence[tuple[Tensor, Tensor]],
        class_weights: Tensor | None,
    ) -> Tensor:
        """Cross entropy of all queries, those without a segment against "no object"."""
        count = logits.shape[-1] - 1
        weights = logits.new_ones(count + 1)
        if class_weights is not None:
            weights[:count] = class_weights.to(weights)
        weights[count] = self.no_object_weight
        wanted = torch.full(logits.shape[:2], count, device=logits.device)
        for row, truth, (queries, segments) in zip(wanted, truths, pairs, strict=True):
            row[queries] = truth.classes[segments]
        losses = F.cross_entropy(logits.transpose(1, 2), wanted, weights, reduction="sum")
        return losses / mean_over_processes(weights[wanted].sum(), least=1e-12)

    def _masks(
        self,
        masks: Tensor,
        truths: Sequence[Truth],
        pairs: Sequence[tuple[Tensor, Tensor]],
        count: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Binary cross entropy and Dice loss of the matched masks at points of their image."""
        logits, labels = [masks.new_zeros(0, self.points)], [masks.new_zeros(0, self.points)]
        for each, truth, (queries, segments) in zip(masks, truths, pairs, strict=True):
            mine = each[queries]
            with torch.no_grad():
                points = self._uncertain_points(mine, truth)
                labels.append(labels_at(truth, segments, points))
            logits.append(_at(mine, points))
        found, wanted = torch.cat(logits), torch.cat(labels)
        return sigmoid_cross_entropy_loss(found, wanted, count), dice_loss(found, wanted, count)

    def _uncertain_points(self, masks: Tensor, truth: Truth) -> Tensor:
        """(n, points, 2): most of them where a mask (n, h, w) is least certain, others anywhere."""
        candidates = draw_points(len(masks), _OVERSAMPLING * self.points, truth)
        count = int(_UNCERTAIN * self.points)
        best = (-_at(masks, candidates).abs()).topk(count, dim=1).indices
        chosen = candidates.gather(1, best.unsqueeze(-1).expand(-1, -1, 2))
        return torch.cat([chosen, draw_points(len(masks), self.points - count, truth)], dim=1)


def _at(maps: Tensor, points: Tensor) -> Tensor:
    """Values (n, p) of maps (n, h, w) at points (n, p, 2), bilinear; x, y in [0, 1]."""
    values: Tensor = sample_point(maps.unsqueeze(1), points, align_corners=False)
    return values.squeeze(1)


def draw_points(count: int, points: int, truth: Truth) -> Tensor:
    """(count, points, 2) places x, y in [0, 1], uniform over the labelled pixels.

    Args:
        count: how many sets of points.
        points: in each.
        truth: of an image with at least one labelled pixel.
    """
    drawn = torch.rand(count, points, 2, device=truth.masks.device)
    if truth.known is None:
        return drawn
    height, width = truth.known.shape
    size = drawn.new_tensor([width, height])
    x, y = (drawn * size).long().unbind(-1)
    # The product may round up to the side.
    inside = truth.known[y.clamp(max=height - 1), x.clamp(max=width - 1)]
    labelled = truth.known.flatten().nonzero().flatten()
    other = labelled[torch.randint(len(labelled), inside.shape, device=drawn.device)]
    corner = torch.stack([other % width, other // width], dim=-1)
    moved = (corner + torch.rand_like(drawn)) / size
    return torch.where(inside.unsqueeze(-1), drawn, moved)


def labels_at(truth: Truth, segments: Tensor | None, points: Tensor) -> Tensor:
    """Labels (n, p) of segments at points (n, p, 2): means of the labelled pixels around.

    Args:
        truth: of the image.
        segments: (n,) positions among them; None for all.
        points: as :func:`draw_points` gives them.
    """
    masks = truth.masks if segments is None else truth.masks[segments]
    values = _at(masks.float(), points)
    if truth.known is None:
        return values
    # At least a quarter, in labelled pixels.
    shares = _at(truth.known.float().expand(len(points), -1, -1), points)
    return values / shares.clamp(min=0.1)
