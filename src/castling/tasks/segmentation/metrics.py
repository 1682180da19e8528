"""The confusion matrix of pixels as a metric that synchronises processes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

from castling.tasks.segmentation.figures import class_shares, confusion, overall_figures


class SegmentationMetrics(Metric):
    """``mIoU``, ``mAcc`` and ``pAcc`` in percent; see :mod:`castling.tasks.segmentation.figures`.

    All images' pixels are counted in one matrix of integers: figures are of the whole split, not
    means of images, and any number of processes computes the same as one.

    Args:
        classes: number of classes K.
    """

    full_state_update = False
    matrix: Tensor
    shown: Tensor
    images: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        matrix = torch.zeros(classes, classes, dtype=torch.int64)
        self.add_state("matrix", matrix, dist_reduce_fx="sum")
        # How many images show each class, and how many there are.
        self.add_state("shown", torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, predicted: Sequence[Tensor], masks: Sequence[Tensor]) -> None:
        """Take in images.

        Args:
            predicted: labels (H, W) of each, at the original size.
            masks: as ``predicted``.

        Raises:
            ValueError: a mask has a label that is no class, or another size.
        """
        for labels, mask in zip(predicted, masks, strict=True):
            found = confusion(labels, mask, self.classes)
            self.matrix += found
            self.shown += (found.sum(1) > 0).long()
            self.images += 1

    def compute(self) -> dict[str, float]:
        """The figures of all images; empty without images."""
        if not int(self.images):
            return {}
        return overall_figures(self.matrix.cpu().numpy())

    def class_figures(self) -> list[dict[str, float | None]]:
        """``IoU``, ``accuracy`` and ``precision`` of each class in percent; None without pixels.

        ``images``: the number of images that show the class.
        """
        if self._computed is None:
            self.compute()
        shares = class_shares(self.matrix.cpu().numpy())
        rows: list[dict[str, float | None]] = []
        for label, count in enumerate(self.shown.tolist()):
            own = {
                "IoU": shares.iou[label],
                "accuracy": shares.accuracy[label],
                "precision": shares.precision[label],
            }
            row = {
                name: None if math.isnan(value) else 100 * float(value)
                for name, value in own.items()
            }
            rows.append({**row, "images": count})
        return rows
