"""A feature pyramid from the one map of a plain vision transformer."""

from __future__ import annotations

from collections.abc import Sequence

from timm.layers import LayerNorm2d
from torch import Tensor, nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock


def _rescale(channels: int, stride: int, wanted: int) -> tuple[nn.Module, int]:
    """From one stride to another, by factors of 2: the layers, and how many channels they give."""
    if wanted >= stride:
        factor = wanted // stride
        return nn.MaxPool2d(factor, factor) if factor > 1 else nn.Identity(), channels
    layers: list[nn.Module] = []
    while wanted < stride:
        if layers:
            layers += [LayerNorm2d(channels), nn.GELU()]
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, 2))
        channels, stride = channels // 2, stride // 2
    return nn.Sequential(*layers), channels


class SimplePyramid(nn.Module):
    """Every level from the last map of a plain transformer (ViTDet; Li et al., ECCV 2022, §3).

    The map is scaled by transposed convolutions or pooling; a 1×1 and a 3×3 convolution with layer
    normalisation end each level. Nothing flows from level to level: the one map already holds what
    attention gathered from the whole image.

    Args:
        channels: of the map.
        stride: of the map, 16 in ViTDet.
        width: channels of every level.
        strides: of the levels, the finest first.
        extra: makes coarser levels on top, from the last scaled map; None for none.
    """

    def __init__(
        self,
        channels: int,
        stride: int,
        width: int,
        strides: Sequence[int],
        extra: ExtraFPNBlock | None = None,
    ) -> None:
        super().__init__()
        if stride.bit_count() != 1:
            raise ValueError(
                f"a pyramid of strides {', '.join(map(str, strides))} needs a map whose stride is "
                f"a power of 2, not {stride}; take a model with patches of 8 or 16 pixels"
            )
        self.scales, self.levels = nn.ModuleList(), nn.ModuleList()
        for wanted in strides:
            scale, scaled = _rescale(channels, stride, wanted)
            self.scales.append(scale)
            self.levels.append(
                nn.Sequential(
                    nn.Conv2d(scaled, width, 1, bias=False),
                    LayerNorm2d(width),
                    nn.Conv2d(width, width, 3, padding=1, bias=False),
                    LayerNorm2d(width),
                )
            )
        self.extra_blocks = extra

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """One map (B, C, h, w) → levels (B, width, H/stride, W/stride), then the extra ones."""
        (single,) = maps
        scaled = [scale(single) for scale in self.scales]
        levels = [level(each) for level, each in zip(self.levels, scaled, strict=True)]
        if self.extra_blocks is not None:
            levels, _ = self.extra_blocks(levels, scaled, [])
        return levels
