"""Any image file to upright 8-bit RGB, and between Pillow's images and tensors."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision import tv_tensors

from castling.data.errors import DataError

#: Endings of the files that count as images, in lower case without the dot: all formats that Pillow
#: decodes by itself. Left out are documents (pdf, ps, eps, wmf, emf), films (mpg), containers that
#: need a foreign reader (bufr, grib, hdf), and raw or ancient kinds without a certain ending.
IMAGE_ENDINGS = frozenset(
    (
        *("apng", "avif", "avifs", "blp", "bmp", "bw", "cur", "dcx", "dds", "dib", "fit", "fits"),
        *("gif", "icb", "icns", "ico", "im", "j2c", "j2k", "jfif", "jp2", "jpc", "jpe", "jpeg"),
        *("jpf", "jpg", "jpx", "msp", "pbm", "pcd", "pcx", "pfm", "pgm", "png", "pnm", "ppm"),
        *("psd", "qoi", "ras", "rgb", "rgba", "sgi", "tga", "tif", "tiff", "vda", "vst", "webp"),
        *("xbm", "xpm"),
    )
)

_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N"}


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any Pillow image into upright RGB with 8 bits per channel.

    The camera's orientation (EXIF) is applied; transparent pixels show white; 16-bit grey is scaled
    to 8 bits, not clipped; of an animation the first frame is taken.

    Args:
        image: of any mode and size.

    Returns:
        An image of mode RGB.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode in _SIXTEEN_BIT:
        image = _grey(np.asarray(image).astype(np.float32) / 65535)
    elif image.mode == "I":
        # Pillow opens some 16-bit files with 32 bits; values above 255 tell them from 8-bit ones.
        values = np.asarray(image).astype(np.float32)
        image = _grey(values / (65535 if values.max(initial=0) > 255 else 255))
    elif image.mode == "F":
        values = np.nan_to_num(np.asarray(image))
        image = _grey(values / (1 if values.max(initial=0) <= 1 else 255))
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey(values: np.ndarray) -> Image.Image:
    """Grey values in [0, 1], (height, width), to an 8-bit image."""
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def read_image(stream: BinaryIO, name: str) -> Image.Image:
    """Decode one open file.

    Args:
        stream: the file's bytes.
        name: what an error calls it.

    Returns:
        An image of mode RGB, upright.

    Raises:
        DataError: it is no image, or a damaged one.
    """
    try:
        with Image.open(stream) as image:
            return to_rgb(image)
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(_complaint(stream, name, error)) from error


def read_size(stream: BinaryIO, name: str) -> tuple[int, int]:
    """(width, height) in the header of one open file.

    Raises:
        DataError: the header is not that of an image.
    """
    try:
        with Image.open(stream) as image:
            return image.size
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise DataError(_complaint(stream, name, error)) from error


def open_image(path: str | Path) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no image, or a damaged one.
    """
    with open(path, "rb") as stream:
        return read_image(stream, str(path))


def image_tensor(image: Image.Image) -> tv_tensors.Image:
    """An RGB image as (3, H, W) of uint8: a view of a channels-last copy of the pixels."""
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return tv_tensors.Image(pixels.view(image.height, image.width, 3).permute(2, 0, 1))


def pillow_image(image: Tensor) -> Image.Image:
    """(3, H, W) of uint8 as an RGB image."""
    pixels = image.as_subclass(Tensor).permute(1, 2, 0).numpy()
    height, width, _ = pixels.shape
    return Image.frombytes("RGB", (width, height), pixels.tobytes())


def _complaint(stream: BinaryIO, name: str, error: Exception) -> str:
    if not stream.closed and stream.seekable() and stream.seek(0, 2) == 0:
        return f"{name} is empty (0 bytes); remove it or put the image back"
    # Pillow names the in-memory stream, which tells the reader nothing.
    reason = "not an image that Pillow can read" if "cannot identify" in str(error) else str(error)
    return f"{name} cannot be read as an image: {reason}; remove the file or replace it"
