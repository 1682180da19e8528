"""Tasks: what a model is trained for. Model in, loss and metric out; plain torch, no trainer."""

from castling.tasks.classification import (
    ClassificationMetric,
    ClassificationTask,
    LossConfig,
)
from castling.tasks.distillation import DistillConfig, Teacher
from castling.tasks.protocol import Metric, Task

__all__ = [
    "ClassificationMetric",
    "ClassificationTask",
    "DistillConfig",
    "LossConfig",
    "Metric",
    "Task",
    "Teacher",
]
