"""Pictures of one image beside each other, each with its name below."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

#: Smaller pictures are enlarged to about this side, so that names fit below.
_READABLE = 96
_GAP, _LETTERS = 4, 12
_QUALITY = 90  # of JPEG


def packed(pixels: Tensor) -> bytes:
    """(3, H, W) in [0, 1] as a JPEG file; what lies outside is cut off."""
    values = (pixels.clamp(0, 1) * 255).round().permute(1, 2, 0).cpu().numpy()
    stream = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(stream, format="JPEG", quality=_QUALITY)
    return stream.getvalue()


def beside_each_other(pictures: Sequence[tuple[str, bytes]]) -> Image.Image:
    """One picture of several of the same size, from left to right."""
    opened = [(name, Image.open(io.BytesIO(data)).convert("RGB")) for name, data in pictures]
    width, height = opened[0][1].size
    times = max(1, _READABLE // max(width, height))
    width, height = width * times, height * times
    across = len(opened) * (width + _GAP) - _GAP
    canvas = Image.new("RGB", (across, height + _LETTERS + _LETTERS // 2), "white")
    write, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LETTERS)
    for number, (name, picture) in enumerate(opened):
        left = number * (width + _GAP)
        canvas.paste(picture.resize((width, height), Image.Resampling.NEAREST), (left, 0))
        write.text((left + width // 2, height + 2), name, "black", font=font, anchor="ma")
    return canvas
