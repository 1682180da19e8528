"""Pictures of predictions: whole images, and the surroundings of a mistake."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from castling.data.decode import pillow_image
from castling.data.sample import Sample
from castling.tasks.detection.drawing import TRUTH, draw_objects
from castling.tasks.detection.prediction import Box, DetectionPrediction
from castling.tasks.detection.records import corners
from castling.tasks.drawing import class_color
from castling.utils.text import percent

#: Detections below this score are not drawn in examples, but for the one an example is of.
SHOWN = 0.3
#: Sides of the part shown of a mistake, in sides of its box; at least so many pixels.
_AROUND, _LEAST = 3.0, 64


def draw_prediction(
    image: Image.Image,
    prediction: DetectionPrediction,
    target: Mapping[str, Tensor] | None = None,
) -> Image.Image:
    """All objects that were found, each in the colour of its class, below them those there."""
    boxes: list[Box] = list(prediction.boxes)
    captions = [
        f"{name} {percent(score, 0)}"
        for name, score in zip(prediction.classes, prediction.scores, strict=True)
    ]
    colors = [class_color(label) for label in prediction.labels]
    if target is not None:
        there = [(a, b, c, d) for a, b, c, d in target["boxes"].tolist()]
        boxes += there
        captions += [""] * len(there)
        colors += [TRUTH] * len(there)
    return draw_objects(image, boxes, captions, colors, prediction.masks)


def draw_example(
    sample: Sample, rows: Sequence[Mapping[str, Any]], position: int, classes: Sequence[str]
) -> Image.Image:
    """The picture of one row of ``predictions.csv``.

    Args:
        sample: the original image.
        rows: of this image.
        position: of the row.
        classes: names in the order of the labels.
    """
    row = rows[position]
    image = pillow_image(sample.image)
    whole = row["outcome"] == "right"
    left, top, right, bottom = (
        (0, 0, image.width, image.height) if whole else _around(corners(row), image)
    )
    boxes: list[Box] = []
    captions: list[str] = []
    colors = []
    for other in [row, *(each for each in rows if each is not row)]:
        found = other["kind"] == "found"
        # Of a mistake only itself and the objects are shown, of a whole image all that is likely.
        if found and other is not row and (not whole or float(other["score"]) < SHOWN):
            continue
        a, b, c, d = corners(other)
        if c <= left or a >= right or d <= top or b >= bottom:  # not in the part shown
            continue
        boxes.append((a - left, b - top, c - left, d - top))
        named = found or other is row
        score = f" {percent(float(other['score']), 0)}" if found else ""
        captions.append(f"{other['class']}{score}" if named else "")
        colors.append(class_color(classes.index(other["class"])) if found else TRUTH)
    return draw_objects(image.crop((left, top, right, bottom)), boxes, captions, colors)


def _around(box: Box, image: Image.Image) -> tuple[int, int, int, int]:
    """A part of the image in whose middle the box lies, as far as the image reaches."""
    center = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    half = max(box[2] - box[0], box[3] - box[1], _LEAST / _AROUND) * _AROUND / 2
    return (
        max(0, int(center[0] - half)),
        max(0, int(center[1] - half)),
        min(image.width, int(center[0] + half) + 1),
        min(image.height, int(center[1] + half) + 1),
    )
