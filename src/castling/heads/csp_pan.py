"""CSP-PAN, the neck of PicoDet: features of all levels exchanged, first downwards, then upwards.

Yu et al., "PP-PicoDet" (arXiv 2111.00902), §3.2. All convolutions are 1×1 or depthwise 5×5; every
level has the same width; a fourth level of twice the last stride is added.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.models.convolutions import convolution, depthwise_separable


class CSPLayer(nn.Module):
    """Cross-stage partial layer of one block: half of the channels take the longer path.

    Args:
        in_channels: of the input.
        channels: of the output, even.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.main = nn.Sequential(
            convolution(in_channels, half), convolution(half, half), depthwise_separable(half, half)
        )
        self.short = convolution(in_channels, half)
        self.join = convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, h, w) → (B, C, h, w)."""
        return self.join(torch.cat((self.main(x), self.short(x)), dim=1))


class CSPPAN(nn.Module):
    """Path aggregation network of CSP layers, and one level more than it is given.

    Args:
        in_channels: of the maps, the finest first; each has half the resolution of the last.
        channels: of all levels behind it.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        steps = len(in_channels) - 1
        self.lateral = nn.ModuleList(convolution(each, channels) for each in in_channels)
        self.top_down = nn.ModuleList(CSPLayer(2 * channels, channels) for _ in range(steps))
        self.bottom_up = nn.ModuleList(CSPLayer(2 * channels, channels) for _ in range(steps))
        self.downsample = nn.ModuleList(_halve(channels) for _ in range(steps))
        self.top_from_lateral, self.top_from_last = _halve(channels), _halve(channels)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) → maps (B, C, h_i, w_i) and one of (⌈h/2⌉, ⌈w/2⌉) of the last."""
        lateral = [layer(each) for layer, each in zip(self.lateral, maps, strict=True)]
        down = [lateral[-1]]
        for layer, finer in zip(self.top_down, reversed(lateral[:-1]), strict=True):
            coarser = F.interpolate(down[0], size=finer.shape[-2:], mode="nearest")
            down.insert(0, layer(torch.cat((coarser, finer), dim=1)))
        up = [down[0]]
        for halve, layer, level in zip(self.downsample, self.bottom_up, down[1:], strict=True):
            up.append(layer(torch.cat((halve(up[-1]), level), dim=1)))
        up.append(self.top_from_lateral(lateral[-1]) + self.top_from_last(up[-1]))
        return up


def _halve(channels: int) -> nn.Sequential:
    return depthwise_separable(channels, channels, stride=2)
