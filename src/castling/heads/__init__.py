"""Heads on any backbone: importing the package registers them; one file per head."""

from castling.heads import (  # noqa: F401  # they register themselves
    cascade,
    d_fine,
    fcos,
    picodet,
    rcnn,
    retinanet,
)
from castling.heads.detector import DetectionTarget, Detector

__all__ = ["DetectionTarget", "Detector"]
