"""Feature pyramid network on the maps of any backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torchvision.ops.feature_pyramid_network import (
    ExtraFPNBlock,
    FeaturePyramidNetwork,
    LastLevelP6P7,
)


class FPN(FeaturePyramidNetwork):
    """torchvision's feature pyramid (Lin et al., CVPR 2017), from a list of maps to one.

    1×1 convolutions bring the maps to one width, coarse levels are added to finer ones (nearest
    neighbour), a 3×3 convolution ends each level.

    Args:
        channels: of the backbone's maps, the finest first.
        width: channels of every level.
        extra: makes coarser levels on top; None for none.
    """

    def __init__(
        self, channels: Sequence[int], width: int, extra: ExtraFPNBlock | None = None
    ) -> None:
        super().__init__(list(channels), width, extra_blocks=extra)

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Maps (B, C_i, h_i, w_i) → levels (B, width, h_i, w_i), then the extra ones."""
        return list(super().forward({str(i): each for i, each in enumerate(maps)}).values())


def p6_p7(channels: int, width: int) -> LastLevelP6P7:
    """Two more levels: P6 by a convolution of the backbone's last map C5, P7 by one of P6.

    RetinaNet, §4. torchvision takes P5 instead of C5 where C5 has as many channels as the pyramid,
    256 in CAS-ViT-S, so that one model of a family would differ from all others.

    Args:
        channels: of C5.
        width: of the pyramid.
    """
    extra = LastLevelP6P7(channels, width)
    extra.use_P5 = False
    return extra
