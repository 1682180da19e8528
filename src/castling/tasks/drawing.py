"""What drawings of all tasks share: colours of classes, letters, sizes."""

from __future__ import annotations

import colorsys
from pathlib import Path

from torch import Tensor

Color = tuple[int, int, int]
#: Smaller images are enlarged to about this side, so that captions do not cover them.
_READABLE = 480
#: The smallest letters and their share of the image's mean side.
_LETTERS, _SHARE = 11, 1 / 40
_GOLDEN = 0.618033988749895


def class_color(label: int) -> Color:
    """A bright colour, far from those of the neighbouring labels."""
    red, green, blue = colorsys.hsv_to_rgb((0.55 + label * _GOLDEN) % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def enlargement(pixels: Tensor) -> int:
    """How many times an image (C, H, W) is repeated along its sides, to be readable."""
    return max(1, _READABLE // max(pixels.shape[-2:]))


def letter_size(height: int, width: int) -> int:
    """Pixels of the letters on an image of so many."""
    return max(_LETTERS, round((width * height) ** 0.5 * _SHARE))


def font_file() -> str:
    """A font with the letters of European languages, which matplotlib brings."""
    import matplotlib

    return str(Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf"))
