"""Options of image classification."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, PositiveFloat

from castling.data.mixing import MixConfig
from castling.tasks.interface import TaskConfig
from castling.tasks.teacher import DistillConfig
from castling.utils.checks import RightOpenUnitInterval, check_fields


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """How far the logits are from the labels.

    Attributes:
        kind: ``"cross_entropy"``, also for the soft labels of mixup; ``"binary_cross_entropy"`` one
            sigmoid a class, averaged over classes, as QT-ViT and EfficientViT train.
        smoothing: label smoothing: this share of the label goes to all classes equally.
        class_weights: how much an image counts by its class. ``"none"``: the same for all;
            ``"balanced"``: n/(K·n_k) for the n_k of n training images in class k of K, so that
            classes count alike; or a list of a weight per class, in the order of the labels.
    """

    kind: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    smoothing: RightOpenUnitInterval = 0.1
    class_weights: Literal["none", "balanced"] | tuple[PositiveFloat, ...] = "none"

    def __post_init__(self) -> None:
        check_fields(self, "task.loss")


@dataclass(frozen=True, kw_only=True)
class SelfDistillConfig:
    """Learning from the model's own moving average (QT-ViT-4 to -6).

    Attributes:
        weight: of a binary cross entropy towards the averaged model's predictions; 0 is off.
        start: training progress at which the term sets in.
    """

    weight: NonNegativeFloat = 0.0
    start: ClosedUnitInterval = 0.25

    def __post_init__(self) -> None:
        check_fields(self, "task.self_distill")


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TaskConfig):
    """One label per image.

    Attributes:
        loss: the loss on labels.
        mix: mixup and CutMix of whole batches.
        erase: probability that an image loses a random rectangle to noise (Zhong et al., 2017).
        distill: learning from a teacher.
        self_distill: learning from the moving average of the weights.
    """

    name: ClassVar[str] = "classification"

    loss: LossConfig = field(default_factory=LossConfig)
    mix: MixConfig = field(default_factory=MixConfig)
    erase: ClosedUnitInterval = 0.0
    distill: DistillConfig = field(default_factory=DistillConfig)
    self_distill: SelfDistillConfig = field(default_factory=SelfDistillConfig)

    def __post_init__(self) -> None:
        check_fields(self, "task")
