"""From samples to batches: one file per task, on torchvision's transforms v2."""

from castling.data.transforms.base import Size, Transform, TransformConfig
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)
from castling.data.transforms.detection import (
    DetectionTransformConfig,
)
from castling.data.transforms.detection_training import DetectionTrainTransform
from castling.data.transforms.padded import PaddedEvalTransform
from castling.data.transforms.pretraining import (
    PretrainingTransform,
    PretrainingTransformConfig,
)
from castling.data.transforms.segmentation import (
    SegmentationTransformConfig,
)
from castling.data.transforms.segmentation_training import SegmentationTrainTransform

__all__ = [
    "ClassificationEvalTransform",
    "ClassificationTrainTransform",
    "ClassificationTransformConfig",
    "DetectionTrainTransform",
    "DetectionTransformConfig",
    "PaddedEvalTransform",
    "PretrainingTransform",
    "PretrainingTransformConfig",
    "SegmentationTrainTransform",
    "SegmentationTransformConfig",
    "Size",
    "Transform",
    "TransformConfig",
]
