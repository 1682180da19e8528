"""Images to try a recipe on without its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from castling.data.registry import SourceConfig
from castling.data.sources.masks import MasksConfig
from castling.utils.labels import IGNORED


def write_noise(folder: Path, count: int) -> SourceConfig:
    """Write noise of odd sizes with masks of two classes, some pixels without a class.

    Args:
        folder: to write to; made here.
        count: of training images; there are two of validation.

    Returns:
        The source that reads them.
    """
    generator = np.random.default_rng(0)
    for split, images in (("train", count), ("val", 2)):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(images):
            size = (90 + 7 * number, 110)
            pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
            labels = generator.integers(0, 2, size, dtype=np.uint8)
            labels[:9] = IGNORED
            Image.fromarray(pixels).save(folder / "images" / split / f"{number}.jpg")
            Image.fromarray(labels).save(folder / "masks" / split / f"{number}.png")
    return MasksConfig(path=str(folder), classes=("a", "b"))
