"""Images and masks as the tests make them."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIZE = (20, 12)  # width, height
CLASSES = ("sky", "road", "car")
COLOURS = ((0, 0, 255), (128, 64, 128), (255, 0, 0))

Save = Callable[[Path, NDArray[np.uint8]], None]


def noise(path: Path, seed: int, size: tuple[int, int] = SIZE) -> None:
    """An image that differs from every other."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def labels(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """(H, W) with all classes and pixels of none."""
    found = np.random.default_rng(1000 + seed).integers(0, 3, (size[1], size[0]), dtype=np.uint8)
    found[:, :2] = 255
    found[0, 2:5] = 0, 1, 2
    return found


def save_numbers(path: Path, mask: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)


def save_palette(path: Path, mask: NDArray[np.uint8], colours: tuple = COLOURS) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(mask).convert("P")
    image.putdata(mask.flatten().tolist())
    flat = [part for colour in colours for part in colour]
    image.putpalette(flat + [7] * (768 - len(flat)))
    image.save(path)


def save_colours(path: Path, mask: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = np.full((256, 3), 9, dtype=np.uint8)
    table[: len(COLOURS)] = COLOURS
    Image.fromarray(table[mask]).save(path)


def pack(folder: Path) -> Path:
    target = folder.with_suffix(".zip")
    with zipfile.ZipFile(target, "w") as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, "top/" + file.relative_to(folder).as_posix())
    return target
