"""What predictors are given: files, folders, Pillow images, arrays and tensors, as samples."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from castling.data.decode import open_image, to_rgb
from castling.data.errors import DataError
from castling.data.files import list_images
from castling.data.sample import Sample
from castling.utils.text import printable

#: A file, a folder, a Pillow image, an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or a tensor
#: (3, H, W) of uint8.
ImageLike = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor


def expanded(images: ImageLike | Iterable[ImageLike], notes: list[str]) -> Iterator[ImageLike]:
    """Single images, in the place of folders those inside; ``notes`` takes what is left out."""
    if isinstance(images, (str, os.PathLike, Image.Image, np.ndarray, Tensor)):
        images = [images]
    for image in images:
        if not isinstance(image, (str, os.PathLike)):
            yield image
            continue
        path = Path(image)
        inside: list[Path] = []
        if _is_folder(path):
            inside, more = list_images(path)
            notes += more
        yield from inside or [path]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # a name that the system refuses; opening it says why
        return False


def pillow_of(image: ImageLike, notes: list[str] | None = None) -> Image.Image:
    """The image as RGB; ``notes`` takes what was noticed. DataError where it cannot be read."""
    if isinstance(image, (str, os.PathLike)):
        return open_image(Path(image), None if notes is None else notes.append)
    if isinstance(image, Image.Image):
        try:
            return to_rgb(image)
        except Exception as error:  # a lazy image is decoded here; see castling.data.decode
            raise DataError(f"the image cannot be decoded: {error}") from error
    if 0 in image.shape:
        raise DataError(f"the image is empty: its shape is {tuple(image.shape)}")
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.dim() != 3 or image.shape[0] != 3:
            raise DataError(
                f"a tensor must be (3, H, W) of uint8, got {tuple(image.shape)} of {image.dtype}"
            )
        return Image.fromarray(image.permute(1, 2, 0).contiguous().cpu().numpy())
    colours = image.ndim == 3 and image.shape[2] in (3, 4)
    if image.dtype != np.uint8 or not (colours or image.ndim == 2):
        raise DataError(
            "an array must be (H, W), (H, W, 3) or (H, W, 4) of uint8, got "
            f"{image.shape} of {image.dtype}"
        )
    return to_rgb(Image.fromarray(image))


def sample_of(index: int, image: ImageLike, notes: list[str]) -> Sample:
    """The image as a sample without a target."""
    pillow = pillow_of(image, notes)
    return Sample(
        image=functional.to_image(pillow),
        target={},
        index=index,
        name=name_of(index, image),
        original_size=(pillow.height, pillow.width),
    )


def name_of(index: int, image: ImageLike) -> str:
    """How a person finds the image: its path, or its number."""
    if isinstance(image, (str, os.PathLike)):
        return printable(os.fspath(image))
    return f"image {index}"


def complaint_about(image: ImageLike, error: Exception) -> str:
    """Why an image could not be read, in words for one who predicts and does not train."""
    name = printable(str(image)) if isinstance(image, (str, os.PathLike)) else "the image"
    if isinstance(error, FileNotFoundError):
        return f"no such file or folder: {name}"
    if isinstance(error, IsADirectoryError):
        return f"{name} holds no image files"
    if isinstance(error, DataError):  # what follows the semicolon is advice for training data
        text = str(error)
        start = text.find(name) + len(name) if name in text else 0  # names may hold semicolons
        what, advised, _ = text[start:].rpartition("; ")
        return text[:start] + what if advised else text
    reason: Any = getattr(error, "strerror", None) or error
    return f"{name} cannot be read: {reason}"
