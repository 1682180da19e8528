"""Object detection and instance segmentation."""

from castling.tasks.detection.config import DetectionConfig
from castling.tasks.detection.prediction import DetectionPrediction
from castling.tasks.detection.task import DetectionTask, targets_of

__all__ = ["DetectionConfig", "DetectionPrediction", "DetectionTask", "targets_of"]
