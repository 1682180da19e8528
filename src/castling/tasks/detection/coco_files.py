"""Predictions as COCO's results: a list of boxes, which pycocotools reads by ``loadRes``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import PurePath
from typing import Any

from castling.tasks.detection.prediction import DetectionPrediction
from castling.utils.files import parse_json


class CocoIds:
    """Numbers of images and categories, as a COCO file of annotations has them.

    Args:
        images: file name → id.
        categories: name of a class → id.
    """

    def __init__(self, images: dict[str, int], categories: dict[str, int]) -> None:
        self.images, self.categories = images, categories
        self._by_name: dict[str, list[int]] = {}
        for name, number in images.items():
            self._by_name.setdefault(PurePath(name).name, []).append(number)

    @classmethod
    def read(cls, path: str | os.PathLike[str], classes: Sequence[str]) -> CocoIds:
        """Those of a file of annotations.

        Raises:
            ValueError: it is no such file, or lacks a class that the model knows.
        """
        with open(path, encoding="utf-8") as file:
            content = parse_json(file.read())
        try:
            images = {str(each["file_name"]): int(each["id"]) for each in content["images"]}
            categories = {str(each["name"]): int(each["id"]) for each in content["categories"]}
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no COCO file of annotations, with images and categories: {error!r}"
            ) from error
        missing = [name for name in classes if name not in categories]
        if missing:
            raise ValueError(f"{path} has no category {missing[0]}, which the model knows")
        return cls(images, categories)

    @classmethod
    def counted(cls, predictions: Iterable[DetectionPrediction], classes: Sequence[str]) -> CocoIds:
        """Images and classes numbered from 1, in their order."""
        names = dict.fromkeys(one.name for one in predictions)
        return cls(
            {name: number for number, name in enumerate(names, 1)},
            {name: number for number, name in enumerate(classes, 1)},
        )

    def image(self, name: str) -> int:
        """The number of an image by its path, of which the end may be known; ValueError if not."""
        if name in self.images:
            return self.images[name]
        path = PurePath(name).as_posix()
        found = {number for known, number in self.images.items() if path.endswith(f"/{known}")}
        numbers = found or set(self._by_name.get(PurePath(name).name, []))
        if len(numbers) != 1:
            what = "more than one image is" if numbers else "no image is"
            raise ValueError(f"{what} called {PurePath(name).name} in the file of --coco_ids")
        return numbers.pop()


def coco_results(predictions: Iterable[DetectionPrediction], ids: CocoIds) -> list[dict[str, Any]]:
    """One entry per box; ``file_name`` and ``category`` are for readers and not COCO's.

    Raises:
        ValueError: ``ids`` does not know an image.
    """
    results: list[dict[str, Any]] = []
    for one in predictions:
        if one.error:
            continue
        number = ids.image(one.name)
        for row, (left, top, right, bottom) in enumerate(one.boxes):
            entry = {
                "image_id": number,
                "category_id": ids.categories[one.classes[row]],
                "bbox": [left, top, right - left, bottom - top],
                "score": one.scores[row],
                "file_name": one.name,
                "category": one.classes[row],
            }
            if one.masks is not None:
                entry["segmentation"] = one.masks[row]
            results.append(entry)
    return results
