"""Images to try a recipe on without its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from castling.data.registry import SourceConfig
from castling.data.sources.coco import CocoConfig
from castling.utils.files import write_json


def write_noise(folder: Path, count: int) -> SourceConfig:
    """Write noise of odd sizes with objects of two classes, in COCO's format, masks included.

    Args:
        folder: to write to; made here.
        count: of training images; there are two of validation.
    """
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 2)):
        (folder / "images" / split).mkdir(parents=True)
        content: dict[str, list[Any]] = {
            "images": [],
            "annotations": [],
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        for number in range(images):
            height, width = 90 + 7 * number, 110
            pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
            name = f"{number}.jpg"
            Image.fromarray(pixels).save(folder / "images" / split / name)
            content["images"].append(
                {"id": number, "file_name": name, "height": height, "width": width}
            )
            for category in (1, 2):
                left, top = generator.integers(0, 60, 2).tolist()
                w, h = generator.integers(10, 30, 2).tolist()
                outline = [left, top, left + w, top, left + w, top + h, left, top + h]
                content["annotations"].append(
                    {
                        "id": len(content["annotations"]) + 1,
                        "image_id": number,
                        "category_id": category,
                        "bbox": [left, top, w, h],
                        "area": w * h,
                        "iscrowd": 0,
                        "segmentation": [outline],
                    }
                )
        write_json(folder / f"instances_{split}.json", content)
    return CocoConfig(path=str(folder))
