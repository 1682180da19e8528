"""Semantic FPN on any backbone: the levels of a feature pyramid, enlarged and summed.

Kirillov et al., "Panoptic Feature Pyramid Networks" (CVPR 2019), §3.1, with BatchNorm: the head of
CAS-ViT's segmentation. Small, and made of operators that every runtime has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor, nn

from castling.heads.pixel_classifier import PixelClassifier
from castling.heads.pyramid import build_pyramid
from castling.heads.segmenter import Segmenter
from castling.heads.strides import check_strides
from castling.models.backbone import Backbone
from castling.models.convolutions import convolution
from castling.models.dense import HeadConfig, MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveInt

    from castling.utils.checks import RightOpenUnitInterval


@dataclass(frozen=True, kw_only=True)
class SemanticFPNConfig(HeadConfig):
    """Options of Semantic FPN.

    Attributes:
        width: channels of the pyramid.
        head_width: channels behind it.
        dropout: of channels in front of the classifier.
        strides: of the levels; the logits have the first.
    """

    name: ClassVar[str] = "semantic_fpn"

    width: PositiveInt = 256
    head_width: PositiveInt = 128
    dropout: RightOpenUnitInterval = 0.1
    strides: tuple[PositiveInt, ...] = (4, 8, 16, 32)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        check_strides(self.strides, 2)


class SemanticFPNHead(nn.Module):
    """3×3 convolutions and doublings of each level until all have the size of the finest.

    Args:
        width: of the levels.
        head_width: of what is summed.
        num_classes: K.
        levels: how many.
        dropout: see :class:`SemanticFPNConfig`.
    """

    def __init__(
        self, width: int, head_width: int, num_classes: int, levels: int, dropout: float
    ) -> None:
        super().__init__()
        self.levels = nn.ModuleList(_level(width, head_width, each) for each in range(levels))
        self.classifier = PixelClassifier(head_width, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, width, h / 2ⁱ, w / 2ⁱ) → logits (B, K, h, w)."""
        total = self.levels[0](maps[0])
        for level, x in zip(self.levels[1:], maps[1:], strict=True):
            total = total + level(x)
        logits: Tensor = self.classifier(total)
        return logits


def _level(width: int, head_width: int, doublings: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(max(1, doublings)):
        layers.append(convolution(width, head_width, 3, act_layer=nn.ReLU))
        if doublings:
            layers.append(nn.Upsample(scale_factor=2, mode="bilinear"))
        width = head_width
    return nn.Sequential(*layers)


class SemanticFPN(Segmenter):
    """Semantic FPN.

    Args:
        config: its options.
        backbone: with the maps that the neck takes.
        neck: gives levels of the strides.
        num_classes: K.
    """

    def __init__(
        self, config: SemanticFPNConfig, backbone: Backbone, neck: nn.Module, num_classes: int
    ) -> None:
        super().__init__()
        self.num_classes, self.multiple = num_classes, config.strides[-1]
        self.backbone, self.neck = backbone, neck
        self.head = SemanticFPNHead(
            config.width, config.head_width, num_classes, len(config.strides), config.dropout
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`Segmenter`; ``logits`` (B, K, H/4, W/4) with the usual strides."""
        return {"logits": self.head(self.neck(self.backbone(images)))}


@register_head(
    SemanticFPNConfig,
    task="segmentation",
    sizes={"semantic_fpn": {}, "semantic_fpn_pico": {"width": 32, "head_width": 16}},
)
def semantic_fpn(
    config: SemanticFPNConfig, make_backbone: MakeBackbone, num_classes: int
) -> SemanticFPN:
    """Semantic FPN; on a plain vision transformer behind a simple pyramid."""
    backbone, neck = build_pyramid(config.width, make_backbone, config.strides)
    return SemanticFPN(config, backbone, neck, num_classes)
