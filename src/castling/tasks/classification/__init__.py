"""Image classification."""

from castling.tasks.classification.config import (
    ClassificationConfig,
    LossConfig,
    SelfDistillConfig,
)
from castling.tasks.classification.prediction import ClassificationPrediction
from castling.tasks.classification.task import ClassificationTask

__all__ = [
    "ClassificationConfig",
    "ClassificationPrediction",
    "ClassificationTask",
    "LossConfig",
    "SelfDistillConfig",
]
