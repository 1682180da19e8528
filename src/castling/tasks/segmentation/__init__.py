"""Semantic segmentation: a class for every pixel."""

from castling.tasks.segmentation.config import AugmentConfig, SegmentationConfig
from castling.tasks.segmentation.prediction import SegmentationPrediction
from castling.tasks.segmentation.task import SegmentationTask

__all__ = ["AugmentConfig", "SegmentationConfig", "SegmentationPrediction", "SegmentationTask"]
