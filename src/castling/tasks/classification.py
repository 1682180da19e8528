"""Image classification: losses with mixed labels and teachers, top-1 and top-5 accuracy."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from castling.data import AugmentConfig, mixes, mixup_batch
from castling.tasks.distillation import DistillConfig, Teacher, distillation_loss

Batch = tuple[Tensor, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How far the logits are from the labels.

    Attributes:
        kind: "cross_entropy", also for the soft labels of mixup; "binary_cross_entropy" one sigmoid
            a class, averaged over classes, as QT-ViT and EfficientViT train.
        smoothing: label smoothing: this share of the label goes to all classes equally.
    """

    kind: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    smoothing: float = 0.1

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"loss.smoothing must lie in [0, 1), got {self.smoothing}")


class ClassificationMetric:
    """Loss, top-1, top-5 and accuracy per class, in percent.

    Sums stay on the device until they are asked for, so an evaluation never waits for the device.

    Args:
        classes: number of classes K.
    """

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.sums: Tensor | None = None
        self.per_class: Tensor | None = None

    def update(self, output: Tensor, batch: Batch) -> None:
        """Take in logits (B, K) and labels (B,)."""
        labels = batch[1]
        logits = output.float()
        ranked = logits.topk(min(5, self.classes), dim=1).indices == labels[:, None]
        first = ranked[:, 0]
        sums = torch.stack(
            (
                F.cross_entropy(logits, labels, reduction="sum").double(),
                first.sum().double(),
                ranked.sum().double(),
                torch.tensor(float(len(labels)), dtype=torch.double, device=labels.device),
            )
        )
        per_class = torch.stack(
            (
                torch.bincount(labels[first], minlength=self.classes),
                torch.bincount(labels, minlength=self.classes),
            )
        )
        if self.sums is None or self.per_class is None:
            self.sums, self.per_class = sums, per_class
        else:
            self.sums += sums
            self.per_class += per_class

    def merge(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each accumulated sum by its total over all processes."""
        if self.sums is None or self.per_class is None:
            self.sums = torch.zeros(4, dtype=torch.double)
            self.per_class = torch.zeros(2, self.classes, dtype=torch.long)
        self.sums, self.per_class = total(self.sums), total(self.per_class)

    def compute(self) -> dict[str, float]:
        """``loss``, ``top1`` and ``top5`` (percent; top-K where there are fewer than 5 classes)."""
        if self.sums is None or self.sums[3] == 0:
            return {}
        loss, first, five, count = self.sums.tolist()
        return {"loss": loss / count, "top1": 100 * first / count, "top5": 100 * five / count}

    def class_accuracy(self) -> list[float]:
        """Percent right of each class; NaN for a class without an image."""
        if self.per_class is None:
            return [float("nan")] * self.classes
        right, count = self.per_class.double()
        return (100 * right / count).tolist()


class ClassificationTask:
    """Trains (B, 3, H, W) → logits (B, K); two heads in training are understood.

    A model that returns a tuple (class logits, distillation logits) in training, as distilled DeiT,
    LeViT and CAS-ViT do, teaches its second head by the teacher; without a teacher both heads
    learn from the labels.

    Args:
        classes: number of classes K.
        loss: the loss on labels.
        augment: mixup and cutmix of whole batches are read from it.
        seed: of the mixing.
        distill: the distillation term.
        teacher: what ``distill`` needs; see :func:`castling.tasks.distillation.load_teacher`.
        self_distill: weight of the term that pulls towards the averaged model's predictions.
    """

    headline = "top1"

    def __init__(
        self,
        classes: int,
        loss: LossConfig | None = None,
        augment: AugmentConfig | None = None,
        seed: int = 0,
        distill: DistillConfig | None = None,
        teacher: Teacher | None = None,
        self_distill: float = 0.0,
    ) -> None:
        self.classes = classes
        self.config = loss or LossConfig()
        self.augment = augment or AugmentConfig()
        self.seed = seed
        self.distill = distill or DistillConfig()
        self.teacher = teacher
        self.self_distill = self_distill
        if self.distill.kind != "none" and teacher is None:
            raise ValueError(f"distillation of kind {self.distill.kind!r} needs a teacher")

    def prepare(self, batch: Batch, epoch: int, batch_index: int, rank: int) -> Batch:
        """Mix images (B, 3, H, W); labels (B,) become (B, K) where mixing is on."""
        if not mixes(self.augment):
            return batch
        return mixup_batch(
            *batch,
            self.augment,
            classes=self.classes,
            seed=self.seed,
            epoch=epoch,
            batch_index=batch_index,
            rank=rank,
        )

    def loss(self, model: nn.Module, batch: Batch, averaged: nn.Module | None = None) -> Tensor:
        """The 0-dimensional training loss of a prepared batch."""
        images, labels = batch
        output = model(images)
        heads = list(output) if isinstance(output, (tuple, list)) else [output]
        if self.teacher is None:
            loss = torch.stack([self.label_loss(head, labels) for head in heads]).mean()
        else:
            taught = distillation_loss(heads[-1], self.teacher(images), self.distill)
            weight = self.distill.weight
            loss = (1 - weight) * self.label_loss(heads[0], labels) + weight * taught
        if averaged is not None and self.self_distill:
            with torch.no_grad():
                goal = self.evaluate(averaged, batch).float().sigmoid()
            loss = loss + self.self_distill * F.binary_cross_entropy_with_logits(
                heads[0].float(), goal
            )
        return loss

    def label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Distance of logits (B, K) to labels (B,) or soft labels (B, K)."""
        smoothing = self.config.smoothing
        logits = logits.float()
        if self.config.kind == "cross_entropy":
            return F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if labels.ndim == 1:
            labels = F.one_hot(labels, self.classes)
        soft = labels.to(logits.dtype) * (1 - smoothing) + smoothing / self.classes
        return F.binary_cross_entropy_with_logits(logits, soft)

    def evaluate(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits (B, K); two heads are averaged where the model has not done so itself."""
        output = model(batch[0])
        if isinstance(output, (tuple, list)):
            return torch.stack(list(output)).mean(dim=0)
        return output

    def new_metric(self) -> ClassificationMetric:
        """An empty metric."""
        return ClassificationMetric(self.classes)

    def images(self, batch: Batch) -> Tensor:
        """The images (B, 3, H, W) of a batch."""
        return batch[0]

    def to(self, device: Any) -> ClassificationTask:
        """Move the teacher."""
        if self.teacher is not None:
            self.teacher.to(device)
        return self
