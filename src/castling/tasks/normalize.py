"""Normalisation of images on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalize(nn.Module):
    """(pixels/255 − mean)/std in float32.

    Args:
        mean: per channel, of pixels in [0, 1].
        std: as ``mean``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        scale = (1 / (255 * torch.tensor(std, dtype=torch.float32))).view(-1, 1, 1)
        shift = (
            torch.tensor(mean, dtype=torch.float32) / torch.tensor(std, dtype=torch.float32)
        ).view(-1, 1, 1)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("shift", shift, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) of any type, in [0, 255], to float32."""
        return pixels.to(torch.float32).mul(self.scale).sub_(self.shift)
