"""What a model in pre-training makes of one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from castling.tasks.prediction import Prediction


@dataclass(frozen=True, kw_only=True)
class PretrainingPrediction(Prediction):
    """How well an image was told, and pictures of it.

    Attributes:
        loss: of the head; None where only features are known, as from an exported file.
        pictures: (name, JPEG file) in the order to show: the image as the model sees it, what is
            masked, what was made of it. They are no part of files of predictions.
    """

    columns: ClassVar[tuple[str, ...]] = ("name", "loss", "error")

    loss: float | None = None
    pictures: tuple[tuple[str, bytes], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, without the pictures."""
        values = super().to_dict()
        del values["pictures"]
        return values

    def rows(self) -> list[dict[str, Any]]:
        """One CSV row."""
        loss = "" if self.loss is None else round(self.loss, 6)
        return [{"name": self.name, "loss": loss, "error": self.error}]

    def summary(self) -> str:
        """The loss."""
        if self.error or self.loss is None:
            return self.error
        return f"loss {self.loss:.4f}"
