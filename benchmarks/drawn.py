"""Predictions of a saved model, drawn side by side with what is there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from castling.data import Source
from castling.data.decode import pillow_image
from castling.deploy import Predictor
from castling.tasks import Prediction
from castling.tasks.detection import DetectionPrediction
from castling.utils.files import replacing

#: Pixels of one picture on a sheet.
SIZE = (400, 300)


#: Objects with a lower score are not drawn.
THRESHOLD = 0.4


def drawn_boxes(
    predictor: Predictor,
    source: Source,
    split: str,
    indices: Sequence[int],
    *,
    photographs: bool = True,
) -> list[Image.Image]:
    """Images of a source with what a detector found, and the objects that are there in white.

    Without ``photographs`` on grey, for those that may not be passed on.
    """
    drawn = []
    for image, found, target in _predicted(predictor, source, split, indices):
        assert isinstance(found, DetectionPrediction)
        ground = image if photographs else _grey(image)
        drawn.append(predictor.task.draw(ground, found.above(THRESHOLD), target))
    return drawn


def drawn_masks(
    predictor: Predictor, source: Source, split: str, indices: Sequence[int]
) -> list[Image.Image]:
    """What a segmenter found in images of a source, beside the truth, without the photographs."""
    return [
        predictor.task.draw(_grey(image), found, target)
        for image, found, target in _predicted(predictor, source, split, indices)
    ]


def _predicted(
    predictor: Predictor, source: Source, split: str, indices: Sequence[int]
) -> list[tuple[Image.Image, Prediction, Any]]:
    """(image, what is predicted, what is labelled) of samples of a source."""
    samples = [source.sample(split, index) for index in indices]
    images = [pillow_image(sample.image) for sample in samples]
    targets = [sample.target for sample in samples]
    return list(zip(images, predictor(images), targets, strict=True))


def _grey(image: Image.Image) -> Image.Image:
    return Image.new("RGB", image.size, "dimgrey")


def save_sheet(
    pictures: Sequence[Image.Image], columns: int, path: Path, size: tuple[int, int] = SIZE
) -> None:
    """Pictures in rows of ``columns``, as one JPEG; each fits into ``size``, (width, height)."""
    width, height = size
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (width * columns, height * rows), "white")
    for place, picture in enumerate(pictures):
        fitted = picture.copy()
        fitted.thumbnail(size, Image.Resampling.LANCZOS)
        left = width * (place % columns) + (width - fitted.width) // 2
        top = height * (place // columns) + (height - fitted.height) // 2
        sheet.paste(fitted, (left, top))
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        sheet.save(temporary, format="JPEG", quality=80, optimize=True)
