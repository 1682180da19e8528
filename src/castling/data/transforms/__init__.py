"""From samples to batches: one file per task, on torchvision's transforms v2."""

from castling.data.transforms.base import Size, Transform, TransformConfig
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)
from castling.data.transforms.detection import (
    DetectionEvalTransform,
    DetectionTransformConfig,
)
from castling.data.transforms.detection_training import DetectionTrainTransform
from castling.data.transforms.pretraining import (
    PretrainingTransform,
    PretrainingTransformConfig,
)
from castling.data.transforms.segmentation import (
    SegmentationEvalTransform,
    SegmentationTransformConfig,
)
from castling.data.transforms.segmentation_training import SegmentationTrainTransform

__all__ = [
    "ClassificationEvalTransform",
    "ClassificationTrainTransform",
    "ClassificationTransformConfig",
    "DetectionEvalTransform",
    "DetectionTrainTransform",
    "DetectionTransformConfig",
    "PretrainingTransform",
    "PretrainingTransformConfig",
    "SegmentationEvalTransform",
    "SegmentationTrainTransform",
    "SegmentationTransformConfig",
    "Size",
    "Transform",
    "TransformConfig",
]
