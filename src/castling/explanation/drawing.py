"""Maps as colours, alone and over an image."""

from __future__ import annotations

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Floats = NDArray[np.float64]

#: Shorter side of drawn pictures in pixels; smaller images are enlarged with their pixels visible.
SIDE = 224
#: How much of the colour covers the image where the map is 0, and where it is 1.
_COVER = (0.10, 0.65)
#: Maps of few large values, such as attention, are drawn by their root.
_ROOT = 0.5
#: Light that is left where nothing is attended to.
_DARK = 0.15


def picture(image: Tensor) -> Image.Image:
    """An image (3, H, W) of uint8, enlarged where it is small."""
    pillow = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    times = -(-SIDE // min(pillow.size))
    if times > 1:
        size = (pillow.width * times, pillow.height * times)
        return pillow.resize(size, Image.Resampling.NEAREST)
    return pillow


def overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """A map (h, w) over an image, scaled from its smallest value to its largest.

    Args:
        image: RGB.
        heat: any finite numbers; a constant map counts as zero.
    """
    scaled = _resized(_unit(heat), image)
    colour = matplotlib.colormaps["turbo"](scaled)[..., :3]
    cover = (_COVER[0] + (_COVER[1] - _COVER[0]) * scaled)[..., None]
    base = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    mixed = (1 - cover) * base + cover * colour
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def spotlight(image: Image.Image, weights: Tensor) -> Image.Image:
    """An image lit by attention weights (h, w), by their root: all of it where they are equal."""
    values = weights.double().clamp(min=0)
    light = _resized((values / values.max().clamp(min=1e-300)).numpy() ** _ROOT, image)
    lit = np.asarray(image.convert("RGB")) * (_DARK + (1 - _DARK) * light)[..., None]
    return Image.fromarray(lit.round().astype(np.uint8))


def field_picture(field: Tensor) -> Image.Image:
    """A receptive field (H, W) in colours, by its root; enlarged where it is small."""
    root = field.double() ** _ROOT
    colour = matplotlib.colormaps["magma"](_unit(root))[..., :3]
    pillow = Image.fromarray((colour * 255).round().astype(np.uint8))
    times = max(1, SIDE // min(pillow.size))
    size = (pillow.width * times, pillow.height * times)
    return pillow.resize(size, Image.Resampling.NEAREST)


def _resized(values: Floats, image: Image.Image) -> Floats:
    """(h, w) in [0, 1] at the size of an image, smoothly."""
    small = Image.fromarray(values.astype(np.float32))
    large = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))
    return large.astype(np.float64).clip(0, 1)


def _unit(values: Tensor) -> Floats:
    """From 0 to 1; zero where all values are equal."""
    array: Floats = values.double().numpy()
    low, high = array.min(), array.max()
    return (array - low) / (high - low) if high > low else np.zeros_like(array)
