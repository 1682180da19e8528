"""From samples to batches: one file per task, on torchvision's transforms v2."""

from castling.data.transforms.base import Size, Transform, TransformConfig
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)

__all__ = [
    "ClassificationEvalTransform",
    "ClassificationTrainTransform",
    "ClassificationTransformConfig",
    "Size",
    "Transform",
    "TransformConfig",
]
