"""Detections compared as sets: which of one model another one finds too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import box_iou

from castling.heads.agreement import LEAST_AGREEMENT

Detections = dict[str, Tensor]

#: Boxes whose sides are as close as this, in pixels, are the same: rounding decides how far those
#: of hardly any area overlap.
_SAME = 0.01


def match_detections(before: Detections, after: Detections, iou: float = 0.9) -> Tensor:
    """Pair detections of the same image and class whose boxes overlap, each with one at most.

    The pairs that overlap most come first; exchanging both sides gives the same pairs.

    Args:
        before: as :meth:`castling.heads.Detector.decode` gives them; those of score 0 do not count.
        after: likewise, of the same images.
        iou: smallest overlap (intersection over union) of a pair.

    Returns:
        (pairs, 3) int64: image, position in ``before``, position in ``after``.
    """
    pairs = [
        torch.cat([torch.full((len(found), 1), image), found], 1)
        for image in range(len(before["scores"]))
        for found in [_match(_image(before, image), _image(after, image), iou)]
    ]
    return torch.cat([torch.empty((0, 3), dtype=torch.int64), *pairs])


def _image(detections: Detections, image: int) -> tuple[Tensor, Tensor, Tensor]:
    names = ("boxes", "labels", "scores")
    boxes, labels, scores = (detections[name][image].cpu() for name in names)
    return boxes.double(), labels, scores.double()


def _match(
    before: tuple[Tensor, Tensor, Tensor], after: tuple[Tensor, Tensor, Tensor], iou: float
) -> Tensor:
    overlap = box_iou(before[0], after[0])
    overlap[torch.cdist(before[0], after[0], p=float("inf")) <= _SAME] = 1
    overlap[before[1][:, None] != after[1]] = 0
    overlap[before[2] <= 0] = 0
    overlap[:, after[2] <= 0] = 0
    # Of boxes that overlap alike, such as copies, those of the most similar score.
    apart = (before[2][:, None] - after[2]).abs()
    rows, columns = torch.where(overlap >= iou)
    order = sorted(
        range(len(rows)),
        key=lambda i: (-float(overlap[rows[i], columns[i]]), float(apart[rows[i], columns[i]])),
    )
    pairs: list[tuple[int, int]] = []
    taken: tuple[set[int], set[int]] = (set(), set())
    for i in order:
        row, column = int(rows[i]), int(columns[i])
        if row not in taken[0] and column not in taken[1]:
            pairs.append((row, column))
            taken[0].add(row)
            taken[1].add(column)
    return torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2)


def detection_agreement(before: Detections, after: Detections, iou: float = 0.9) -> Tensor:
    """(B,) share of the detections of two models that both have; 1 where neither has any.

    Twice the number of pairs of :func:`match_detections` by the number of detections: symmetric.
    """
    pairs = match_detections(before, after, iou)[:, 0].bincount(minlength=len(before["scores"]))
    both = (torch.cat([before["scores"], after["scores"]], 1) > 0).sum(dim=1).cpu()
    return torch.where(both > 0, 2 * pairs / both.clamp(min=1), 1.0)


def align_detections(
    before: Detections, after: Detections, iou: float = 0.9
) -> tuple[Detections, Detections]:
    """The detections that both have, in the same places; the others are set to zero.

    What is left can be compared element by element, whatever the order of equal scores.
    """
    pairs = match_detections(before, after, iou)
    return _only(before, pairs[:, [0, 1]], pairs), _only(after, pairs[:, [0, 2]], pairs)


def _only(detections: Detections, rows: Tensor, pairs: Tensor) -> Detections:
    """Rows (image, position) of each tensor, where the first of the pair is; elsewhere zeros."""
    found: Detections = {}
    for name, values in detections.items():
        moved = torch.zeros_like(values)
        moved[pairs[:, 0], pairs[:, 1]] = values[rows[:, 0], rows[:, 1]]
        found[name] = moved
    return found


class DetectorOutputs:
    """What of a detector is compared and exported, where no task says so.

    The switch, folding and exports take one as their ``task``.
    """

    least_agreement = LEAST_AGREEMENT

    def raw_outputs(self, model: Any, images: Tensor) -> dict[str, Tensor]:
        """Dense outputs of normalised images (B, 3, H, W)."""
        raw: dict[str, Tensor] = model(images)
        return raw

    def postprocess(self, model: Any, raw: dict[str, Tensor], size: tuple[int, int]) -> Detections:
        """The detections; see :meth:`castling.heads.Detector.decode`."""
        found: Detections = model.decode(raw, size)
        return found

    def outputs(self, model: Any, images: Tensor) -> Detections:
        """Detections of normalised images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        return self.postprocess(model, self.raw_outputs(model, images), (height, width))

    def agreement(self, before: Detections, after: Detections) -> Tensor:
        """See :func:`detection_agreement`."""
        return detection_agreement(before, after)

    def align(self, before: Detections, after: Detections) -> tuple[Detections, Detections]:
        """See :func:`align_detections`."""
        return align_detections(before, after)
