"""The two blocks of ESNet (PicoDet, §3.1 and figure 3): ShuffleNetV2's, with attention of channels.

Notable: depthwise convolutions have no activation; the squeeze has a quarter of the channels.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import SqueezeExcite
from torch import Tensor, nn

from castling.models.convolutions import convolution


def _squeeze_excite(channels: int, **factory: Any) -> SqueezeExcite:
    return SqueezeExcite(channels, rd_channels=channels // 4, gate_layer=nn.Hardsigmoid, **factory)


def shuffle(x: Tensor, groups: int = 2) -> Tensor:
    """(B, C, h, w): channels of ``groups`` equal parts by turns (ShuffleNet, §3.1)."""
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)


class ESBlock(nn.Module):
    """At stride 1: half of the channels pass by, the other half is transformed; then a shuffle.

    Args:
        channels: of input and output.
        middle: channels inside, even.
        **factory: ``device`` and ``dtype``.
    """

    def __init__(self, channels: int, middle: int, **factory: Any) -> None:
        super().__init__()
        half, inner = channels // 2, middle // 2
        self.expand = convolution(half, inner, **factory)
        self.depthwise = convolution(inner, inner, 3, groups=inner, act=False, **factory)
        self.se = _squeeze_excite(middle, **factory)
        self.project = convolution(middle, half, **factory)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, C, h, w)."""
        passing, x = x.chunk(2, dim=1)
        x = self.expand(x)
        x = self.project(self.se(torch.cat((x, self.depthwise(x)), dim=1)))
        return shuffle(torch.cat((passing, x), dim=1))


class ESDownsample(nn.Module):
    """At stride 2: two branches side by side, then a depthwise separable convolution.

    Args:
        in_channels: of the input.
        channels: of the output.
        middle: twice the channels inside the second branch.
        **factory: ``device`` and ``dtype``.
    """

    def __init__(self, in_channels: int, channels: int, middle: int, **factory: Any) -> None:
        super().__init__()
        half, inner = channels // 2, middle // 2
        self.depthwise1 = convolution(
            in_channels, in_channels, 3, stride=2, groups=in_channels, act=False, **factory
        )
        self.project1 = convolution(in_channels, half, **factory)
        self.expand2 = convolution(in_channels, inner, **factory)
        self.depthwise2 = convolution(inner, inner, 3, stride=2, groups=inner, act=False, **factory)
        self.se2 = _squeeze_excite(inner, **factory)
        self.project2 = convolution(inner, half, **factory)
        self.mix = nn.Sequential(
            convolution(channels, channels, 3, groups=channels, **factory),
            convolution(channels, channels, **factory),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) → (B, C, ⌈h/2⌉, ⌈w/2⌉)."""
        first = self.project1(self.depthwise1(x))
        second = self.project2(self.se2(self.depthwise2(self.expand2(x))))
        return self.mix(torch.cat((first, second), dim=1))
