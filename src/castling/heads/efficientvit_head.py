"""EfficientViT's segmentation head: three maps summed at stride 8, then inverted residuals.

Cai et al., "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction" (ICCV
2023), §3.2, with the widths and depths of the released ADE20K models. There it scores 10 points of
mIoU above the UperNet that QT-ViT reports on the same backbones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, ClassVar, Literal

from timm.layers import GELUTanh
from timm.models.efficientvit_mit import ConvNormAct, FusedMBConv, MBConv, ResidualBlock
from torch import Tensor, nn
from torch.nn import functional as F

from castling.heads.pixel_classifier import PixelClassifier
from castling.heads.pyramid import maps_of
from castling.heads.segmenter import Segmenter
from castling.heads.strides import check_strides
from castling.models.backbone import Backbone
from castling.models.dense import HeadConfig, MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveInt

    from castling.utils.checks import RightOpenUnitInterval

Block = Literal["auto", "inverted", "fused"]
#: Hidden channels of a block, relative to its width.
_EXPANSION = 4
#: Width of the simple pyramid on plain vision transformers where the head has none.
_PLAIN_WIDTH = 128


@dataclass(frozen=True, kw_only=True)
class EfficientViTHeadConfig(HeadConfig):
    """Options of EfficientViT's head; those left out follow the backbone, as published.

    Attributes:
        width: channels of the head; None: those of the finest map.
        depth: number of blocks; None: 1 up to a width of 32 (B0), else 3.
        block: ``inverted`` residuals (B0 to B3), or ``fused`` ones, whose first two convolutions
            are one (L1 to L3); ``auto``: fused where the backbone has some.
        final_expansion: width of a 1×1 convolution in front of the classifier, relative to
            ``width``; 0 is none; None: 8 with fused blocks, else none.
        dropout: of channels in front of the classifier.
        strides: of the maps; the logits have the first.
    """

    name: ClassVar[str] = "efficientvit_head"

    width: PositiveInt | None = None
    depth: NonNegativeInt | None = None
    block: Block = "auto"
    final_expansion: NonNegativeInt | None = None
    dropout: RightOpenUnitInterval = 0.0
    strides: tuple[PositiveInt, ...] = (8, 16, 32)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        check_strides(self.strides, 2)


class EfficientViTHead(nn.Module):
    """1×1 convolutions to one width, a sum at the finest size, residual blocks, a classifier.

    Args:
        channels: of the maps, the finest first.
        width: of the head.
        depth: number of blocks.
        fused: whether they are fused.
        final_expansion: see :class:`EfficientViTHeadConfig`.
        dropout: see :class:`EfficientViTHeadConfig`.
        num_classes: K.
    """

    def __init__(
        self,
        channels: Sequence[int],
        width: int,
        depth: int,
        fused: bool,
        final_expansion: int,
        dropout: float,
        num_classes: int,
    ) -> None:
        super().__init__()
        act = GELUTanh if fused else nn.Hardswish
        block = (
            partial(FusedMBConv, act_layer=(act, None))
            if fused
            else partial(MBConv, act_layer=(act, act, None))
        )
        self.inputs = nn.ModuleList(
            ConvNormAct(each, width, 1, act_layer=None) for each in channels
        )
        self.blocks = nn.Sequential(
            *(
                ResidualBlock(block(width, width, expand_ratio=_EXPANSION), nn.Identity())
                for _ in range(depth)
            )
        )
        self.expand: nn.Module = nn.Identity()
        if final_expansion:
            self.expand = ConvNormAct(width, width * final_expansion, 1, act_layer=act)
            width *= final_expansion
        self.classifier = PixelClassifier(width, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i), the finest first → logits (B, K, h_0, w_0)."""
        finest, *others = (layer(x) for layer, x in zip(self.inputs, maps, strict=True))
        size = (finest.shape[-2], finest.shape[-1])
        for each in others:
            finest = finest + F.interpolate(each, size, mode="bicubic", align_corners=False)
        logits: Tensor = self.classifier(self.expand(self.blocks(finest)))
        return logits


class EfficientViTSegmenter(Segmenter):
    """EfficientViT's head on a backbone.

    Args:
        config: options of the head.
        backbone: with the maps that the neck takes.
        neck: gives maps of the strides.
        channels: of these.
        num_classes: K.
    """

    def __init__(
        self,
        config: EfficientViTHeadConfig,
        backbone: Backbone,
        neck: nn.Module,
        channels: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.multiple = num_classes, config.strides[-1]
        self.backbone, self.neck = backbone, neck
        width = config.width or channels[0]
        fused = config.block == "fused"
        if config.block == "auto":
            fused = any(isinstance(module, FusedMBConv) for module in backbone.modules())
        depth, final = config.depth, config.final_expansion
        self.head = EfficientViTHead(
            channels,
            width,
            (1 if width <= 32 else 3) if depth is None else depth,
            fused,
            (8 if fused else 0) if final is None else final,
            config.dropout,
            num_classes,
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`Segmenter`; ``logits`` (B, K, H/8, W/8) with the usual strides."""
        return {"logits": self.head(self.neck(self.backbone(images)))}


@register_head(
    EfficientViTHeadConfig,
    task="segmentation",
    sizes={"efficientvit_head": {}, "efficientvit_head_pico": {"width": 16, "depth": 1}},
)
def efficientvit_head(
    config: EfficientViTHeadConfig, make_backbone: MakeBackbone, num_classes: int
) -> EfficientViTSegmenter:
    """EfficientViT's head; on a plain vision transformer behind a simple pyramid."""
    width = config.width or _PLAIN_WIDTH
    backbone, neck, channels = maps_of(width, make_backbone, config.strides)
    return EfficientViTSegmenter(config, backbone, neck, channels, num_classes)
