"""What of a segmenter is compared and exported: its scores, and the label of every pixel."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from castling.heads.agreement import LEAST_PIXEL_AGREEMENT
from castling.heads.segmenter import labels_of

Outputs = dict[str, Tensor]


def pixel_agreement(before: Outputs, after: Outputs) -> Tensor:
    """(B,) share of the pixels of ``mask`` (B, H, W) with the same label."""
    return (before["mask"] == after["mask"]).flatten(1).double().mean(1)


def align_masks(before: Outputs, after: Outputs) -> tuple[Outputs, Outputs]:
    """Both with label 0 where their labels differ; how many do is in :func:`pixel_agreement`.

    What is left can be compared element by element.
    """
    same = before["mask"] == after["mask"]
    zero = torch.zeros((), dtype=before["mask"].dtype, device=same.device)
    both = torch.where(same, before["mask"], zero)
    return {**before, "mask": both}, {**after, "mask": both.to(after["mask"].dtype)}


class SegmenterOutputs:
    """What of a segmenter is compared and exported, where no task says so.

    The switch, folding and exports take one as their ``task``.
    """

    least_agreement = LEAST_PIXEL_AGREEMENT

    def raw_outputs(self, model: Any, images: Tensor) -> Outputs:
        """Dense outputs of normalised images (B, 3, H, W)."""
        raw: Outputs = model(images)
        return raw

    def postprocess(self, model: Any, raw: Outputs, size: tuple[int, int]) -> Outputs:
        """``logits`` (B, K, h, w), the head's scores, and ``mask`` (B, H, W) int64 labels."""
        scores = model.scores(raw)
        return {"logits": scores, "mask": labels_of(scores, size)}

    def outputs(self, model: Any, images: Tensor) -> Outputs:
        """Scores and labels of normalised images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        return self.postprocess(model, self.raw_outputs(model, images), (height, width))

    def agreement(self, before: Outputs, after: Outputs) -> Tensor:
        """See :func:`pixel_agreement`."""
        return pixel_agreement(before, after)

    def align(self, before: Outputs, after: Outputs) -> tuple[Outputs, Outputs]:
        """See :func:`align_masks`."""
        return align_masks(before, after)
