"""Heads on any backbone: importing the package registers them; one file per head."""

from castling.heads import d_fine as d_fine  # imported for what it registers
from castling.heads.detector import DetectionTarget, Detector

__all__ = ["DetectionTarget", "Detector"]
