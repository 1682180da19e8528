"""What detectors are trained on is checked before it can become an index error or a NaN."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from castling.heads.detector import DetectionTarget


def check_targets(
    images: Tensor, targets: Sequence[DetectionTarget], num_classes: int, *, masks: bool = False
) -> None:
    """Refuse targets that no loss is defined for. Images without objects are fine.

    Args:
        images: (B, 3, H, W).
        targets: one per image.
        num_classes: K.
        masks: whether each needs masks.

    Raises:
        ValueError: with the image's place in the batch, and what is wrong.
    """
    if len(targets) != len(images):
        raise ValueError(f"{len(images)} images were given with {len(targets)} targets")
    for place, target in enumerate(targets):
        fault = _fault(target, num_classes, images.shape[-2:] if masks else None)
        if fault:
            raise ValueError(f"targets of image {place} of the batch: {fault}")


def _fault(target: DetectionTarget, num_classes: int, mask_size: torch.Size | None) -> str:
    """What is wrong with one image's targets; empty where nothing is."""
    boxes, labels = target["boxes"], target["labels"]
    if boxes.shape != (len(labels), 4):
        return (
            f"boxes have shape {tuple(boxes.shape)} for {len(labels)} labels; expected (n, 4), and "
            "(0, 4) without objects"
        )
    if mask_size is not None:
        masks = target.get("masks")
        if masks is None:
            return "there are no masks, and this head learns masks; train on data that has them"
        if masks.shape != (len(labels), *mask_size):
            return f"masks have shape {tuple(masks.shape)}; expected {(len(labels), *mask_size)}"
    # NaN compares false, so that it counts as wrong too.
    wrong = ~((boxes[:, 2:] > boxes[:, :2]).all(1) & boxes.isfinite().all(1))
    if wrong.any():
        box = boxes[wrong][0].tolist()
        return f"{int(wrong.sum())} boxes have no width or height; the first is {box}"
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        return (
            f"a label is {int(labels[outside][0])}; the head has {num_classes} classes, with "
            f"labels 0 to {num_classes - 1}"
        )
    return ""
