"""Loss, top-1, top-5, and precision, recall and F1 per class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from castling.tasks.classification.figures import ClassFigures


class ClassificationMetrics(Metric):
    """Loss and accuracies in percent; sums are added up over processes by torchmetrics.

    Sums stay on the device until they are asked for, so an evaluation never waits for the device.

    Args:
        classes: number of classes K.
    """

    full_state_update = False
    sums: Tensor
    per_class: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        # loss, first right, among the first five, images
        self.add_state("sums", torch.zeros(4, dtype=torch.double), dist_reduce_fx="sum")
        # right images, all images and predictions of each class
        self.add_state("per_class", torch.zeros(3, classes, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Take in logits (B, K) and labels (B,)."""
        logits = logits.float()
        best = logits.topk(min(5, self.classes), dim=1).indices
        ranked = best == labels[:, None]
        first = ranked[:, 0]
        self.sums += torch.stack(
            (
                F.cross_entropy(logits, labels, reduction="sum").double(),
                first.sum().double(),
                ranked.sum().double(),
                torch.tensor(float(len(labels)), dtype=torch.double, device=labels.device),
            )
        )
        self.per_class += torch.stack(
            (
                torch.bincount(labels[first], minlength=self.classes),
                torch.bincount(labels, minlength=self.classes),
                torch.bincount(best[:, 0], minlength=self.classes),
            )
        )

    def compute(self) -> dict[str, float]:
        """``loss`` and ``top1``; ``top5`` with more than five classes. Empty without images."""
        loss, first, five, count = self.sums.tolist()
        if count == 0:
            return {}
        found = {"loss": loss / count, "top1": 100 * first / count}
        return found | {"top5": 100 * five / count} if self.classes > 5 else found

    def class_accuracy(self) -> list[float | None]:
        """Percent right of each class; None for a class without an image."""
        return [None if one.recall is None else 100 * one.recall for one in self.class_figures()]

    def class_figures(self) -> list[ClassFigures]:
        """Precision, recall, F1 and number of images of each class."""
        return [ClassFigures.of(*counts) for counts in zip(*self.per_class.tolist(), strict=True)]
