"""What a detector says about one image."""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torchvision.ops import nms

from castling.tasks.prediction import Prediction
from castling.utils.text import percent

Box = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class DetectionPrediction(Prediction):
    """The objects found in one image, best first.

    Attributes:
        boxes: x1, y1, x2, y2 of each, in pixels of the original image.
        scores: of each, in [0, 1]; not calibrated.
        labels: class of each, in [0, K).
        classes: names of these classes.
        masks: COCO's run-length encoding of each, ``{"size": [height, width], "counts": text}``;
            None for a detector without masks.
        below: the best score that :meth:`above` left out; 0 for none.
    """

    columns: ClassVar[tuple[str, ...]] = (
        *("name", "class", "score", "x1", "y1", "x2", "y2"),
        "error",
    )

    boxes: tuple[Box, ...] = ()
    scores: tuple[float, ...] = ()
    labels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    masks: tuple[dict[str, Any], ...] | None = None
    below: float = 0.0

    def __len__(self) -> int:
        return len(self.boxes)

    def above(self, score: float) -> DetectionPrediction:
        """Those with at least this score."""
        below = max((own for own in self.scores if own < score), default=self.below)
        chosen = self._chosen([i for i, own in enumerate(self.scores) if own >= score])
        return dataclasses.replace(chosen, below=below)

    def shown(self, *, top: int, score: float) -> DetectionPrediction:
        """Those with at least this score."""
        return self.above(score)

    def without_overlaps(self, overlap: float) -> DetectionPrediction:
        """Without boxes that a better one, of whatever class, overlaps by more than ``overlap``."""
        if not self.boxes:
            return self
        scores = torch.tensor(self.scores, dtype=torch.float64)
        kept = nms(torch.tensor(self.boxes, dtype=torch.float64), scores, overlap)
        return self._chosen(kept.tolist())

    def _chosen(self, chosen: list[int]) -> DetectionPrediction:
        return dataclasses.replace(
            self,
            boxes=tuple(self.boxes[i] for i in chosen),
            scores=tuple(self.scores[i] for i in chosen),
            labels=tuple(self.labels[i] for i in chosen),
            classes=tuple(self.classes[i] for i in chosen),
            masks=None if self.masks is None else tuple(self.masks[i] for i in chosen),
        )

    def rows(self) -> list[dict[str, Any]]:
        """One CSV row per object, none for an image without; one with the error of a bad image."""
        if self.error:
            return [{"name": self.name, "error": self.error}]
        return [
            {
                "name": self.name,
                "class": name,
                "score": round(score, 6),
                **{
                    side: round(x, 2) for side, x in zip(("x1", "y1", "x2", "y2"), box, strict=True)
                },
            }
            for box, score, name in zip(self.boxes, self.scores, self.classes, strict=True)
        ]

    def summary(self) -> str:
        """How many of each class, and the best score of each: ``2 cat (best 91 %), 1 dog (…)``."""
        if self.error:
            return self.error
        counts = Counter(self.classes)
        best = {
            name: max(s for s, c in zip(self.scores, self.classes, strict=True) if c == name)
            for name in counts
        }
        parts = [
            f"{count} {name} (best {percent(best[name], 0)})"
            for name, count in counts.most_common()
        ]
        lower = f" (lower scores: up to {percent(self.below, 0)})" if self.below else ""
        return ", ".join(parts) or f"nothing found{lower}"
