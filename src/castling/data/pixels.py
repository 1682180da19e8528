"""Arithmetic on pixels: fitting one image, and what is done to a batch of 8-bit tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from castling.data.config import Interpolation
from castling.data.policies import RESAMPLING
from castling.utils.randomness import Keys, uniform

Size = tuple[int, int]


def fit(
    image: Image.Image, size: Size, *, warp: bool, fraction: float, interpolation: Interpolation
) -> Image.Image:
    """Scale an RGB image to (height, width).

    Args:
        image: of any size.
        size: (height, width) wanted.
        warp: change the aspect ratio and keep everything; otherwise scale and cut the centre.
        fraction: share of the limiting side that the centre crop keeps.
        interpolation: name of the filter.
    """
    height, width = size
    if image.size == (width, height) and (warp or fraction == 1):
        return image
    if warp:
        return image.resize((width, height), RESAMPLING[interpolation])
    over_height, over_width = int(height / fraction), int(width / fraction)
    old_width, old_height = image.size
    if over_height * old_width >= over_width * old_height:  # the height is the tighter side
        scaled = max(over_width, int(over_height * old_width / old_height)), over_height
    else:
        scaled = over_width, max(over_height, int(over_width * old_height / old_width))
    if scaled != image.size:
        image = image.resize(scaled, RESAMPLING[interpolation])
    left = round((scaled[0] - width) / 2)
    top = round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) of uint8."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) in [0, 255], any type, to (pixels/255 − mean)/std in float32."""
    scale = 1 / (255 * torch.tensor(std)).view(3, 1, 1)
    shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)
    return pixels.to(torch.float32).mul_(scale).sub_(shift)


def shift_and_mirror(pixels: Tensor, sample_keys: Keys, *, padding: int, flip: float) -> Tensor:
    """Cut every image at a random place of itself with a border of zeros, and mirror some.

    Args:
        pixels: (B, 3, H, W), any type.
        sample_keys: (B,), decide place and mirror.
        padding: width of the border in pixels.
        flip: probability of mirroring.

    Returns:
        (B, 3, H, W), a new tensor when anything is done.
    """
    count, _, height, width = pixels.shape
    if padding:
        bordered = F.pad(pixels, (padding,) * 4)
        tops = (uniform(sample_keys, 0) * (2 * padding + 1)).astype(int).tolist()
        lefts = (uniform(sample_keys, 1) * (2 * padding + 1)).astype(int).tolist()
        pixels = torch.empty_like(pixels)
        source, target = bordered.numpy(), pixels.numpy()  # slices cost less in NumPy
        for index in range(count):
            top, left = tops[index], lefts[index]
            target[index] = source[index, :, top : top + height, left : left + width]
    if flip:
        mirrored = torch.from_numpy(uniform(sample_keys, 2) < flip).view(count, 1, 1, 1)
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
    return pixels
