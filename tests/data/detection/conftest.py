from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image


@dataclass
class CocoFolder:
    """A sound small data set of COCO's format, which tests damage before they write it."""

    root: Path
    content: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self) -> Path:
        for split, values in self.content.items():
            (self.root / f"instances_{split}.json").write_text(json.dumps(values))
        return self.root

    @property
    def train(self) -> dict[str, Any]:
        return self.content["train"]

    def image(self, index: int, split: str = "train") -> Path:
        return self.root / "images" / split / self.content[split]["images"][index]["file_name"]


def polygon(x: float, y: float, width: float, height: float) -> list[list[float]]:
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def save_noise(path: Path, size: tuple[int, int], seed: int) -> None:
    """An image of (width, height) that differs from every other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture(name="save_noise")
def _save_noise() -> Callable[[Path, tuple[int, int], int], None]:
    return save_noise


@pytest.fixture
def coco_folder(tmp_path: Path) -> Callable[..., CocoFolder]:
    """Images 64×48 with three objects each, of the classes cat (3), dog (7) and hen (8)."""

    def make(splits: Sequence[str] = ("train", "val"), images: int = 4) -> CocoFolder:
        folder = CocoFolder(tmp_path / "set")
        for number, split in enumerate(splits):
            listed, objects = [], []
            for index in range(images):
                name = f"{split}{index}.png"
                save_noise(folder.root / "images" / split / name, (64, 48), 100 * number + index)
                listed.append({"id": 10 * index + 5, "file_name": name, "width": 64, "height": 48})
                for place, category in enumerate((3, 7, 8)):
                    box = [4.0 + 18 * place, 6.0 + index, 12.0 + place, 20.0]
                    objects.append(
                        {
                            "id": 1000 + 10 * index + place,
                            "image_id": 10 * index + 5,
                            "category_id": category,
                            "bbox": box,
                            "area": box[2] * box[3],
                            "iscrowd": 0,
                            "segmentation": polygon(*box),
                        }
                    )
            folder.content[split] = {
                "images": listed,
                "annotations": objects,
                "categories": [
                    {"id": 7, "name": "dog"},
                    {"id": 3, "name": "cat"},
                    {"id": 8, "name": "hen"},
                ],
            }
        return folder

    return make
