"""Any image file to upright 8-bit RGB, and between Pillow's images and tensors."""

from __future__ import annotations

import os
import stat
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision import tv_tensors

from castling.data.errors import DataError
from castling.data.formats import plugin_for
from castling.utils.text import printable

_ORIENTATION = 0x0112
#: What shows each orientation upright (TIFF 6.0, Exif 2.3).
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_TURNS[tag] for tag in (5, 6, 7, 8)}  # they exchange width and height
_ONE_AT_A_TIME = threading.Lock()
_SIXTEEN_BIT = {"I;16", "I;16B", "I;16L", "I;16N"}


def to_rgb(
    image: Image.Image,
    note: Callable[[str], None] | None = None,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Turn any Pillow image into upright RGB with 8 bits per channel.

    The camera's orientation (EXIF) is applied; transparent pixels show white; 16-bit grey is scaled
    to 8 bits, not clipped; of an animation the first frame is taken.

    Args:
        image: of any mode and size.
        note: called with a line where the EXIF is damaged; the image is not turned then.
        size: (width, height) to which annotations refer; an image that has it as it is stored, and
            would not have it upright, is not turned.

    Returns:
        An image of mode RGB.
    """
    image.load()  # what is wrong with the pixels must not be taken for a fault of the EXIF
    # Not ImageOps.exif_transpose: it also writes the EXIF anew, which any damaged tag prevents.
    turn = _TURNS.get(_orientation(image, note))
    if turn is not None and not (image.size == size and turn in _SIDEWAYS and size[0] != size[1]):
        image = image.transpose(turn)
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


def _orientation(image: Image.Image, note: Callable[[str], None] | None) -> int:
    """The EXIF tag that says which side is up; 1, upright, where it cannot be read."""
    found: object = 1
    complaints: list[str] = []
    try:
        found = image.getexif().get(_ORIENTATION, 1)
        if note is not None and "exif" in image.info:
            # Read once more: opening a JPEG file reads it, and Pillow warns the first time alone.
            # Filters of warnings belong to the process, and images are read on several threads.
            with _ONE_AT_A_TIME, warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                Image.Exif().load(image.info["exif"])
            texts = [str(each.message).strip() for each in caught]
            complaints = [text for text in texts if "EXIF" in text]
    except Exception as error:  # damaged EXIF raises many kinds
        complaints.append(str(error) or type(error).__name__)
    if note is not None and complaints:
        note(f"its EXIF is damaged ({printable(complaints[0])}), so it may not be shown upright")
    return found if isinstance(found, int) else 1


def _grey(values: np.ndarray) -> Image.Image:
    """Grey values in [0, 1], (height, width), to an 8-bit image."""
    return Image.fromarray((values.clip(0, 1) * 255).round().astype(np.uint8))


def read_image(
    stream: BinaryIO,
    name: str,
    note: Callable[[str], None] | None = None,
    size: tuple[int, int] | None = None,
) -> Image.Image:
    """Decode one open file.

    Args:
        stream: the file's bytes.
        name: what an error calls it.
        note: called with a line where the image is sound but its EXIF, which says which side is
            up, is damaged; it is taken as it is stored then.
        size: (width, height) to which annotations refer; see :func:`to_rgb`.

    Returns:
        An image of mode RGB, upright.

    Raises:
        DataError: it is no image, a damaged one, or one of too many pixels.
    """
    with opened_image(stream, name) as image:
        return to_rgb(image, None if note is None else lambda text: note(f"{name}: {text}"), size)


def read_size(
    stream: BinaryIO, name: str, note: Callable[[str], None] | None = None
) -> tuple[int, int]:
    """(width, height) in the header of one open file.

    Args:
        stream: the file's bytes.
        name: what an error calls it.
        note: as for :func:`read_image`; EXIF that stands behind the pixels is not looked at.

    Raises:
        DataError: the header is not that of an image, or one of too many pixels.
    """
    with opened_image(stream, name) as image:
        if note is not None and "exif" in image.info:
            _orientation(image, lambda text: note(f"{name}: {text}"))
        return image.size


def read_orientation(stream: BinaryIO, name: str) -> tuple[tuple[int, int], tuple[int, int], bool]:
    """The size of one open file as it is stored and upright, from its header.

    Returns:
        (width, height) as stored, the same upright, and whether EXIF turns or mirrors it at all.

    Raises:
        DataError: as for :func:`read_size`.
    """
    with opened_image(stream, name) as image:
        turn = _TURNS.get(_orientation(image, None)) if "exif" in image.info else None
        return image.size, image.size[::-1] if turn in _SIDEWAYS else image.size, turn is not None


@contextmanager
def opened_image(stream: BinaryIO, name: str) -> Iterator[Image.Image]:
    """An image whose header was read; whatever a decoder raises becomes a DataError."""
    try:
        try:
            image = Image.open(stream)
        except UnidentifiedImageError as error:
            stream.seek(0)
            registered, advice = plugin_for(stream.read(32))
            if not registered:
                raise (ValueError(advice) if advice else error) from error
            stream.seek(0)
            image = Image.open(stream)
        with image:
            yield image
    # Decoders raise whatever their formats' faults lead to: struct.error, IndexError,
    # NotImplementedError, RuntimeError, zlib.error, MemoryError, … (python-pillow/Pillow#6252).
    except Exception as error:
        raise DataError(_complaint(stream, name, error)) from error


def open_image(path: str | Path, note: Callable[[str], None] | None = None) -> Image.Image:
    """Read an image file as upright 8-bit RGB.

    Args:
        path: of a file; pipes, sockets and devices are refused unopened.
        note: as for :func:`read_image`.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no image, a damaged one, or one of too many pixels.
    """
    with open_file(path) as stream:
        return read_image(stream, printable(str(path)), note)


def open_file(path: str | Path) -> BinaryIO:
    """Open a file for reading, never a pipe, socket or device, on which reading could wait forever.

    Raises:
        FileNotFoundError: there is no such file.
        IsADirectoryError: it is a folder.
        DataError: it is something else than a file.
    """
    mode = os.stat(path).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise DataError(
            f"{printable(str(path))} is a pipe, socket or device, not a file; remove it"
        )
    return open(path, "rb")


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
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) // 10**6
        return (
            f"{name} cannot be read as an image: it has more than {limit} million pixels; scale it "
            "down, or raise PIL.Image.MAX_IMAGE_PIXELS"
        )
    reason = printable(str(error)) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        # Pillow names the in-memory stream, which tells the reader nothing.
        reason = "not an image that Pillow can read"
    elif not isinstance(error, (OSError, ValueError, SyntaxError)):
        reason = f"{reason} ({type(error).__name__})"
    return f"{name} cannot be read as an image: {reason}; remove the file or replace it"
