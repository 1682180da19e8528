"""What a classifier says about one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from castling.tasks.prediction import Prediction
from castling.utils.text import percent


@dataclass(frozen=True, kw_only=True)
class ClassificationPrediction(Prediction):
    """The classes of one image, best first.

    Attributes:
        classes: names; empty where the image could not be read.
        probabilities: of these classes, in [0, 1]: the softmax of the logits, not calibrated.
    """

    columns: ClassVar[tuple[str, ...]] = ("name", "rank", "class", "probability", "error")

    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()

    def shown(self, *, top: int, score: float) -> ClassificationPrediction:
        """The best ``top`` classes."""
        return self.top(top)

    def top(self, count: int) -> ClassificationPrediction:
        """The best ``count`` classes alone; all of them where there are fewer."""
        return ClassificationPrediction(
            name=self.name,
            original_size=self.original_size,
            error=self.error,
            classes=self.classes[:count],
            probabilities=self.probabilities[:count],
        )

    def rows(self) -> list[dict[str, Any]]:
        """One CSV row per class; one with the error where the image could not be read."""
        if self.error:
            return [{"name": self.name, "error": self.error}]
        ranked = enumerate(zip(self.classes, self.probabilities, strict=True), 1)
        return [
            {"name": self.name, "rank": rank, "class": name, "probability": probability}
            for rank, (name, probability) in ranked
        ]

    def summary(self) -> str:
        """Classes with their probabilities in one line."""
        ranked = zip(self.classes, self.probabilities, strict=True)
        return self.error or "  ".join(f"{name} {percent(p)}" for name, p in ranked)
