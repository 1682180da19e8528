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
#: How much of the colour covers the image where a class activation is 0, and where it is 1.
_COVER = (0.10, 0.65)
#: How much of the colour of attention covers an image in grey.
_TINT = 0.55
#: Receptive fields are drawn by their root: beside the centre all else would be black.
_ROOT = 0.5
#: What a map is divided by where all of it is zero.
_LEAST = 1e-300


def picture(image: Tensor) -> Image.Image:
    """An image (3, H, W) of uint8, enlarged where it is small."""
    return _enlarged(Image.fromarray(image.permute(1, 2, 0).contiguous().numpy()))


def activation_overlay(image: Image.Image, heat: Tensor) -> Image.Image:
    """A class activation map (h, w) in [0, 1] over an image, clearest where it is largest."""
    scaled = _resized(heat.double().numpy(), image)
    cover = (_COVER[0] + (_COVER[1] - _COVER[0]) * scaled)[..., None]
    return _mixed(np.asarray(image.convert("RGB")), _colour(scaled, "turbo"), cover)


def attention_overlay(image: Image.Image, weights: Tensor) -> Image.Image:
    """Attention weights (h, w) in colours, from zero to the largest, over the image in grey."""
    values = weights.double().clamp(min=0)
    scaled = _resized((values / values.max().clamp(min=_LEAST)).numpy(), image)
    grey = np.asarray(image.convert("L"))[..., None]
    return _mixed(grey, _colour(scaled, "viridis"), _TINT)


def field_picture(field: Tensor) -> Image.Image:
    """A receptive field (H, W) in colours, by its root; enlarged where it is small."""
    root = (field.double() / field.double().max().clamp(min=_LEAST)).numpy() ** _ROOT
    return _enlarged(_mixed(np.zeros(1), _colour(root, "magma"), 1.0))


def _enlarged(image: Image.Image) -> Image.Image:
    times = -(-SIDE // min(image.size))
    size = (image.width * times, image.height * times)
    return image.resize(size, Image.Resampling.NEAREST) if times > 1 else image


def _resized(values: Floats, image: Image.Image) -> Floats:
    """(h, w) in [0, 1] at the size of an image, smoothly."""
    small = Image.fromarray(values.astype(np.float32))
    large = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))
    return large.astype(np.float64).clip(0, 1)


def _colour(values: Floats, name: str) -> Floats:
    """(h, w) in [0, 1] -> (h, w, 3), by a colour map of matplotlib."""
    colours: Floats = matplotlib.colormaps[name](values)[..., :3]
    return colours


def _mixed(base: NDArray[np.generic], colour: Floats, cover: Floats | float) -> Image.Image:
    """``cover`` of the colour, the rest of a base of uint8."""
    mixed = (1 - cover) * base.astype(np.float64) + cover * colour * 255
    return Image.fromarray(mixed.round().astype(np.uint8))
