"""Images to try a recipe on without its own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from castling.data.registry import SourceConfig
from castling.data.sources import FolderConfig


def write_noise(folder: Path, count: int) -> SourceConfig:
    """Write noise of odd sizes in folders of two classes.

    Args:
        folder: to write to; made here.
        count: of training images, rounded up to an even number; there are four of validation.
    """
    generator = np.random.default_rng(0)
    for split, images in (("train", -(-count // 2)), ("val", 2)):
        for label in ("a", "b"):
            target = folder / split / label
            target.mkdir(parents=True)
            for index in range(images):
                pixels = generator.integers(0, 256, (90 + 7 * index, 110, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{index}.jpg")
    return FolderConfig(path=str(folder))
