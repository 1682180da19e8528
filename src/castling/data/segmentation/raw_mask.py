"""A mask file as it is stored: numbers, colours or colours of a palette, not yet classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from castling.data.decode import opened_image

#: Formats that change pixels, so that labels are lost.
_LOSSY = frozenset(("JPEG", "JPEG2000", "MPO", "AVIF", "HEIF"))
#: Grey samples of 2 and 4 bits, by how Pillow names them: it scales them to 0 … 255.
_SCALED = {"L;2": 85, "L;4": 17}


@dataclass(frozen=True)
class RawMask:
    """What one file holds.

    Attributes:
        codes: (H, W) uint8 or int32: numbers, or red·65536 + green·256 + blue where ``colour``.
        colour: whether codes are colours.
        palette: (n, 3) uint8 colours of the numbers; None where the file has no palette.
        see_through: whether some pixel is transparent; None where there is no alpha channel.
        lossy: the format, where it changes pixels; else empty.
        wide: whether numbers were stored in 16 bits or more.
    """

    codes: NDArray[np.uint8] | NDArray[np.int32]
    colour: bool = False
    palette: NDArray[np.uint8] | None = None
    see_through: bool | None = None
    lossy: str = ""
    wide: bool = False


def read_mask(stream: BinaryIO, name: str) -> RawMask:
    """Decode one open file, in the orientation in which it is stored.

    Args:
        stream: the file's bytes.
        name: what an error calls it.

    Raises:
        DataError: it is no image, a damaged one, or one of too many pixels.
    """
    with opened_image(stream, name) as image:
        return _raw(image)


def _raw(image: Image.Image) -> RawMask:
    lossy = image.format if image.format in _LOSSY else ""
    tiles = getattr(image, "tile", ())  # how the file holds pixels, before they are loaded
    scale = _SCALED.get(str(tiles[0].args), 1) if tiles else 1
    image.load()
    see_through = None
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa"):
        see_through = bool((np.asarray(image.getchannel(image.getbands()[-1])) < 255).any())
        image = image.convert({"RGBA": "RGB", "RGBa": "RGBA", "PA": "P"}.get(image.mode, "L"))
    palette, colour, wide = None, False, image.mode[0] in "IF"
    if image.mode == "P":
        palette = np.array(image.getpalette("RGB") or [], dtype=np.uint8).reshape(-1, 3)
        codes = np.asarray(image)
    elif image.mode in ("1", "L"):
        codes = np.asarray(image).astype(np.uint8) // scale
    elif image.mode == "F":  # whole numbers are meant as such; no class has the others
        real = np.nan_to_num(np.asarray(image), nan=-1.0, posinf=-1.0, neginf=-1.0)
        codes = np.where((real % 1 == 0) & (np.abs(real) < 2**31), real, -1).astype(np.int32)
    elif wide:
        codes = np.asarray(image).astype(np.int32)
    else:
        red, green, blue = np.moveaxis(np.asarray(image.convert("RGB")).astype(np.int32), -1, 0)
        codes, colour = red << 16 | green << 8 | blue, True
    return RawMask(codes, colour, palette, see_through, lossy or "", wide)


def runs(codes: NDArray[np.uint8] | NDArray[np.int32]) -> tuple[NDArray, NDArray[np.int64]]:
    """Equal neighbours along the rows: their codes and lengths; far fewer than pixels in masks."""
    flat = codes.reshape(-1)
    first = np.ones(flat.size, dtype=bool)
    first[1:] = flat[1:] != flat[:-1]
    starts = np.flatnonzero(first)
    return flat[starts], np.diff(starts, append=flat.size)


def code_counts(codes: NDArray[np.uint8] | NDArray[np.int32]) -> tuple[NDArray, NDArray[np.int64]]:
    """The codes that occur, sorted, and the number of pixels of each."""
    if codes.dtype == np.uint8:
        counts = np.bincount(codes.reshape(-1), minlength=256)
        found = np.flatnonzero(counts)
        return found.astype(np.int32), counts[found]
    values, lengths = runs(codes)
    found, inverse = np.unique(values, return_inverse=True)
    return found, np.bincount(inverse, weights=lengths, minlength=len(found)).astype(np.int64)


def colour_of(code: int) -> tuple[int, int, int]:
    """Red, green and blue of a code."""
    return code >> 16 & 255, code >> 8 & 255, code & 255


def code_of(colour: tuple[int, int, int]) -> int:
    """The code of red, green and blue."""
    red, green, blue = colour
    return red << 16 | green << 8 | blue


def segment_id(code: int) -> int:
    """The id that panoptic masks write as red + 256·green + 65536·blue; undone by itself."""
    return code >> 16 | code & 0xFF00 | (code & 255) << 16
