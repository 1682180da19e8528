"""Heads on any backbone: importing the package registers them; one file per head."""

from castling.heads import d_fine, picodet  # noqa: F401  # they register themselves
from castling.heads.detector import DetectionTarget, Detector

__all__ = ["DetectionTarget", "Detector"]
