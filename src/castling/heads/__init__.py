"""Heads on any backbone: importing the package registers them; one file per head."""

from castling.heads import cascade, fcos, picodet, rcnn, retinanet  # noqa: F401 registered
from castling.heads.detector import DetectionTarget, Detector

__all__ = ["DetectionTarget", "Detector"]
