"""UperNet on any backbone: pyramid pooling on top of a feature pyramid.

Xiao et al., "Unified Perceptual Parsing for Scene Understanding" (ECCV 2018), §3.1: the head of
QT-ViT's segmentation. transformers has the same layers; they are written here because

- BatchNorm cannot learn from the single value per channel that the coarsest pooling leaves of a
  single image: it uses its running statistics there;
- pooling to bins is a product with averaging matrices, so that programs of any size export;
- nothing more is needed to train and run it than castling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.heads.pixel_classifier import PixelClassifier
from castling.heads.pyramid import maps_of
from castling.heads.segmenter import Segmenter, pixel_loss
from castling.heads.strides import check_strides
from castling.models.backbone import Backbone
from castling.models.convolutions import convolution
from castling.models.dense import HeadConfig, MakeBackbone, register_head
from castling.utils.modes import eval_mode

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeFloat, PositiveInt

    from castling.utils.checks import RightOpenUnitInterval

#: Rows and columns of the bins that the coarsest map is pooled to.
_BINS = (1, 2, 3, 6)


@dataclass(frozen=True, kw_only=True)
class UperNetConfig(HeadConfig):
    """Options of UperNet.

    Attributes:
        width: channels of the head.
        pyramid_width: channels of the simple pyramid on plain vision transformers.
        dropout: of channels in front of the classifiers.
        auxiliary: also classify the second coarsest map, in training.
        auxiliary_width: channels of that classifier.
        auxiliary_weight: of its loss.
        strides: of the maps; the logits have the first.
    """

    name: ClassVar[str] = "upernet"

    width: PositiveInt = 512
    pyramid_width: PositiveInt = 256
    dropout: RightOpenUnitInterval = 0.1
    auxiliary: bool = False
    auxiliary_width: PositiveInt = 256
    auxiliary_weight: NonNegativeFloat = 0.4
    strides: tuple[PositiveInt, ...] = (4, 8, 16, 32)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        check_strides(self.strides, 2)


class PyramidPooling(nn.Module):
    """Means over few large bins, each with a 1×1 convolution, beside the map itself.

    Zhao et al., "Pyramid Scene Parsing Network" (CVPR 2017), §3.2.

    Args:
        channels: of the map.
        width: of the result.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(convolution(channels, width, act_layer=nn.ReLU) for _ in _BINS)
        self.join = convolution(channels + len(_BINS) * width, width, 3, act_layer=nn.ReLU)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, width, h, w)."""
        size = (x.shape[-2], x.shape[-1])
        parts = [x]
        for bins, layer in zip(_BINS, self.layers, strict=True):
            pooled = pool_to_bins(x, bins)
            if self.training and bins == 1 and pooled.shape[0] == 1:
                with eval_mode(layer):
                    pooled = layer(pooled)
            else:
                pooled = layer(pooled)
            parts.append(F.interpolate(pooled, size, mode="bilinear", align_corners=False))
        joined: Tensor = self.join(torch.cat(parts, dim=1))
        return joined


def pool_to_bins(x: Tensor, bins: int) -> Tensor:
    """(B, C, h, w) → (B, C, bins, bins) means, as ``adaptive_avg_pool2d`` gives them."""
    rows, columns = (_means(side, bins, x) for side in x.shape[-2:])
    return rows @ x @ columns.mT


def _means(side: int, bins: int, like: Tensor) -> Tensor:
    """(bins, side): bin i is the mean of the places from ⌊i·side/bins⌋ to ⌈(i+1)·side/bins⌉."""
    place = torch.arange(side, device=like.device)
    index = torch.arange(bins, device=like.device)[:, None]
    first, last = index * side // bins, ((index + 1) * side + bins - 1) // bins
    inside = ((place >= first) & (place < last)).to(like.dtype)
    return inside / (last - first)


class UperNetHead(nn.Module):
    """Pyramid pooling, a feature pyramid, and all levels joined.

    Args:
        channels: of the maps, the finest first.
        width: of the head.
        num_classes: K.
        dropout: see :class:`UperNetConfig`.
    """

    def __init__(
        self, channels: Sequence[int], width: int, num_classes: int, dropout: float
    ) -> None:
        super().__init__()
        *fine, top = channels
        self.pooling = PyramidPooling(top, width)
        self.laterals = nn.ModuleList(convolution(c, width, act_layer=nn.ReLU) for c in fine)
        self.outputs = nn.ModuleList(convolution(width, width, 3, act_layer=nn.ReLU) for _ in fine)
        self.join = convolution(len(channels) * width, width, 3, act_layer=nn.ReLU)
        self.classifier = PixelClassifier(width, num_classes, dropout)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) → logits (B, K, h_0, w_0)."""
        levels = [layer(x) for layer, x in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self.pooling(maps[-1]))
        for index in range(len(levels) - 2, -1, -1):
            levels[index] = levels[index] + _resized(levels[index + 1], levels[index])
        outputs = [layer(x) for layer, x in zip(self.outputs, levels[:-1], strict=True)]
        outputs.append(levels[-1])
        joined = torch.cat([_resized(x, outputs[0]) for x in outputs], dim=1)
        logits: Tensor = self.classifier(self.join(joined))
        return logits


def _resized(x: Tensor, like: Tensor) -> Tensor:
    size = (like.shape[-2], like.shape[-1])
    return F.interpolate(x, size, mode="bilinear", align_corners=False)


class UperNet(Segmenter):
    """UperNet.

    Args:
        config: its options.
        backbone: with the maps that the neck takes.
        neck: gives maps of the strides.
        channels: of these.
        num_classes: K.
    """

    def __init__(
        self,
        config: UperNetConfig,
        backbone: Backbone,
        neck: nn.Module,
        channels: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.multiple = num_classes, config.strides[-1]
        self.config, self.backbone, self.neck = config, backbone, neck
        self.head = UperNetHead(channels, config.width, num_classes, config.dropout)
        self.auxiliary_head: nn.Sequential | None = None
        if config.auxiliary:
            width = config.auxiliary_width
            self.auxiliary_head = nn.Sequential(
                convolution(channels[-2], width, 3, act_layer=nn.ReLU),
                PixelClassifier(width, num_classes, config.dropout),
            )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`Segmenter`; ``logits`` (B, K, H/4, W/4) with the usual strides."""
        return {"logits": self.head(self.neck(self.backbone(images)))}

    def losses(
        self, images: Tensor, masks: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :class:`Segmenter`; ``class``, and ``auxiliary`` where there is such a head."""
        maps = self.neck(self.backbone(images))
        parts = {"class": pixel_loss(self.head(maps), masks, class_weights)}
        if self.auxiliary_head is not None:
            auxiliary = pixel_loss(self.auxiliary_head(maps[-2]), masks, class_weights)
            parts["auxiliary"] = self.config.auxiliary_weight * auxiliary
        return parts


@register_head(
    UperNetConfig,
    task="segmentation",
    sizes={
        "upernet": {},
        "upernet_pico": {"width": 16, "pyramid_width": 16, "auxiliary_width": 16},
    },
)
def upernet(config: UperNetConfig, make_backbone: MakeBackbone, num_classes: int) -> UperNet:
    """UperNet; on a plain vision transformer behind a simple pyramid."""
    backbone, neck, channels = maps_of(config.pyramid_width, make_backbone, config.strides)
    return UperNet(config, backbone, neck, channels, num_classes)
