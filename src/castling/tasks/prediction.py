"""What a task says about one image, in the coordinates of the original image."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar, Self


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """Base of the predictions of all tasks.

    Attributes:
        name: how a person finds the image; a file's path.
        original_size: (height, width) in pixels; (0, 0) where the image could not be read.
        error: why the image could not be read; empty otherwise.
    """

    #: Columns that :meth:`rows` gives, for CSV files.
    columns: ClassVar[tuple[str, ...]] = ("name", "error")

    name: str
    original_size: tuple[int, int] = (0, 0)
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def rows(self) -> list[dict[str, Any]]:
        """One CSV row per statement; one for the whole image by default."""
        return [{"name": self.name, "error": self.error}]

    def shown(self, *, top: int, score: float) -> Prediction:
        """What of it a person wants to see.

        Args:
            top: how many classes of a whole image.
            score: least score of what is found in it.
        """
        return self

    def condensed(self) -> Self:
        """Without what is large, once it is drawn or written; rows and summary stay."""
        return self

    def summary(self) -> str:
        """One line for the terminal, without the name."""
        return self.error
