"""Heads on any backbone: importing the package registers them; one file per head."""

from castling.heads import (  # noqa: F401  # they register themselves
    cascade,
    d_fine,
    efficientvit_head,
    fcos,
    mask2former,
    picodet,
    rcnn,
    retinanet,
    semantic_fpn,
    upernet,
)
from castling.heads.detector import DetectionTarget, Detector
from castling.heads.segmenter import IGNORED, Segmenter

__all__ = ["IGNORED", "DetectionTarget", "Detector", "Segmenter"]
