"""Heads on any backbone: importing the package registers them; one file per head."""

from castling.heads import (  # noqa: F401  # they register themselves
    cascade,
    d_fine,
    distill_features,
    efficientvit_head,
    fcos,
    mae,
    mask2former,
    picodet,
    rcnn,
    retinanet,
    semantic_fpn,
    simmim,
    upernet,
)
from castling.heads.detector import DetectionTarget, Detector
from castling.heads.pretrainer import Pretrainer
from castling.heads.segmenter import Segmenter
from castling.utils.labels import IGNORED

__all__ = ["IGNORED", "DetectionTarget", "Detector", "Pretrainer", "Segmenter"]
