"""Maps as colours, alone and over an image."""

from __future__ import annotations

import matplotlib
import numpy as np
from PIL import Image
from torch import Tensor

#: Shorter side of drawn pictures in pixels; smaller images are enlarged with their pixels visible.
SIDE = 224
#: How much of the colour covers the image where the map is 0, and where it is 1.
_COVER = (0.10, 0.65)
#: Maps of few large values, such as attention, are drawn by their root.
_ROOT = 0.5


def picture(image: Tensor) -> Image.Image:
    """An image (3, H, W) of uint8, enlarged where it is small."""
    pillow = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    times = -(-SIDE // min(pillow.size))
    if times > 1:
        size = (pillow.width * times, pillow.height * times)
        return pillow.resize(size, Image.Resampling.NEAREST)
    return pillow


def overlay(image: Image.Image, heat: Tensor, *, colours: str = "turbo") -> Image.Image:
    """A map (h, w) over an image, scaled from its smallest value to its largest.

    Args:
        image: RGB.
        heat: any finite numbers; a constant map counts as zero.
        colours: name of a colour map of matplotlib.
    """
    scaled = np.asarray(
        Image.fromarray(_unit(heat).astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    ).clip(0, 1)
    colour = matplotlib.colormaps[colours](scaled)[..., :3]
    cover = (_COVER[0] + (_COVER[1] - _COVER[0]) * scaled)[..., None]
    base = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    mixed = (1 - cover) * base + cover * colour
    return Image.fromarray((mixed * 255).round().astype(np.uint8))


def attention_overlay(image: Image.Image, weights: Tensor) -> Image.Image:
    """Attention weights (h, w) over an image, by their root, from zero."""
    values = weights.double().clamp(min=0)
    root = (values / values.max().clamp(min=1e-300)) ** _ROOT
    return overlay(image, root, colours="inferno")


def field_picture(field: Tensor) -> Image.Image:
    """A receptive field (H, W) in colours, by its root; enlarged where it is small."""
    root = field.double() ** _ROOT
    colour = matplotlib.colormaps["magma"](_unit(root))[..., :3]
    pillow = Image.fromarray((colour * 255).round().astype(np.uint8))
    times = max(1, SIDE // min(pillow.size))
    size = (pillow.width * times, pillow.height * times)
    return pillow.resize(size, Image.Resampling.NEAREST)


def _unit(values: Tensor) -> np.ndarray:
    """From 0 to 1; zero where all values are equal."""
    array = values.double().numpy()
    low, high = array.min(), array.max()
    return (array - low) / (high - low) if high > low else np.zeros_like(array)
