"""Turning a pretrained softmax ViT linear: closed form, layer by layer, end to end, switched."""

from castling.conversion.budget import Budget, MixedModel
from castling.conversion.config import ConversionConfig
from castling.conversion.convert import convert
from castling.conversion.report import ConversionReport, StageFigures

__all__ = [
    "Budget",
    "ConversionConfig",
    "ConversionReport",
    "MixedModel",
    "StageFigures",
    "convert",
]
