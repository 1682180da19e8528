"""What a model attends to: implied attention, receptive fields, class activation, one page."""

from castling.explanation.explain import explain
from castling.explanation.implied import Implied, NotLinearError, implied_attention
from castling.explanation.result import (
    Explanation,
    ImageExplanation,
    LayerExplanation,
    ModelExplanation,
    ReceptiveField,
)

__all__ = [
    "Explanation",
    "ImageExplanation",
    "Implied",
    "LayerExplanation",
    "ModelExplanation",
    "NotLinearError",
    "ReceptiveField",
    "explain",
    "implied_attention",
]
