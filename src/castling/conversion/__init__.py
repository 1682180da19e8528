"""Turning a pretrained softmax ViT linear: closed form, layer by layer, end to end, switched."""

from castling.conversion.config import ConversionConfig
from castling.conversion.convert import convert
from castling.conversion.report import ConversionReport, StageFigures

__all__ = ["ConversionConfig", "ConversionReport", "StageFigures", "convert"]
