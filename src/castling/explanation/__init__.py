"""What a model attends to: implied attention, receptive fields, class activation, one page."""

from castling.explanation.explain import explain
from castling.explanation.implied import (
    Implied,
    NotLinearError,
    ProjectedTokens,
    implied_attention,
)
from castling.explanation.records import (
    ImageExplanation,
    LayerExplanation,
    ModelExplanation,
    ReceptiveField,
)
from castling.explanation.result import Explanation

__all__ = [
    "Explanation",
    "ImageExplanation",
    "Implied",
    "LayerExplanation",
    "ModelExplanation",
    "NotLinearError",
    "ProjectedTokens",
    "ReceptiveField",
    "explain",
    "implied_attention",
]
