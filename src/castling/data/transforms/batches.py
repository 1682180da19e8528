"""What is done to the images of a whole batch at once, keyed by sample."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from castling.utils.randomness import Keys, uniform


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
