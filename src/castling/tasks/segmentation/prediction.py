"""What a segmenter says about one image."""

from __future__ import annotations

import dataclasses
import io
import os
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from castling.tasks.prediction import Prediction
from castling.tasks.segmentation.palette import colour_table
from castling.utils.files import write_bytes
from castling.utils.text import percent

#: Classes that a line of the terminal names.
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class SegmentationPrediction(Prediction):
    """The class of every pixel of one image.

    Attributes:
        mask: (H, W) uint8 labels at the original size; None where the image could not be read, and
            in a prediction without its pixels.
        pixels: of each class.
        classes: names in the order of the labels.
        colours: red, green and blue of each class; empty for the default ones.
    """

    columns: ClassVar[tuple[str, ...]] = ("name", "class", "pixels", "share", "error")

    mask: NDArray[np.uint8] | None = field(default=None, repr=False, compare=False)
    pixels: tuple[int, ...] = ()
    classes: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()

    def found(self) -> list[tuple[int, int]]:
        """(label, pixels) of the classes that occur, the largest first."""
        there = [(label, count) for label, count in enumerate(self.pixels) if count]
        return sorted(there, key=lambda each: -each[1])

    def condensed(self) -> Self:
        """Without the mask; what it says of classes stays."""
        return dataclasses.replace(self, mask=None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: the classes that occur; the mask has a file of its own."""
        return {
            "name": self.name,
            "original_size": self.original_size,
            "error": self.error,
            "classes": [
                {
                    "class": self.classes[label],
                    "label": label,
                    "pixels": count,
                    "share": self._share(count),
                }
                for label, count in self.found()
            ],
        }

    def rows(self) -> list[dict[str, Any]]:
        """One CSV row per class that occurs, the largest first; one for the error of an image."""
        if self.error:
            return [{"name": self.name, "error": self.error}]
        return [
            {
                "name": self.name,
                "class": self.classes[label],
                "pixels": count,
                "share": round(self._share(count), 6),
            }
            for label, count in self.found()
        ]

    def summary(self) -> str:
        """The largest classes and their shares: ``road 41.2 %, sky 30.0 %, … (7 classes)``."""
        if self.error:
            return self.error
        found = self.found()
        parts = [
            f"{self.classes[label]} {percent(self._share(count))}"
            for label, count in found[:_NAMED]
        ]
        more = f", … ({len(found)} classes)" if len(found) > _NAMED else ""
        return ", ".join(parts) + more

    def image(self) -> Image.Image:
        """The labels as an indexed image; its palette has the colours of the classes.

        Raises:
            ValueError: there is no mask.
        """
        if self.mask is None:
            raise ValueError(f"{self.name}: there is no mask{f': {self.error}' * bool(self.error)}")
        image = Image.fromarray(self.mask)
        image.putpalette(colour_table(self.colours, self.classes).tobytes())
        return image

    def write_mask(self, path: str | os.PathLike[str]) -> None:
        """Write the labels as an indexed PNG, whose palette has the colours of the classes.

        Raises:
            ValueError: there is no mask.
        """
        content = io.BytesIO()
        self.image().save(content, format="PNG")
        write_bytes(path, content.getvalue())

    def _share(self, count: int) -> float:
        return count / max(1, sum(self.pixels))
