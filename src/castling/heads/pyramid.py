"""Backbone and pyramid of the detectors of the R-CNN and RetinaNet families."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock

from castling.heads.fpn import FPN
from castling.heads.simple_pyramid import SimplePyramid
from castling.models.backbone import Backbone, MissingStrideError
from castling.models.dense import HeadConfig, MakeBackbone

if TYPE_CHECKING:
    from jsonargparse.typing import ClosedUnitInterval, PositiveInt


@dataclass(frozen=True, kw_only=True)
class PyramidHeadConfig(HeadConfig):
    """Options of detectors on a feature pyramid.

    Attributes:
        width: channels of every level of the pyramid.
        score_threshold: detections with less are dropped.
        nms_threshold: of two boxes of a class that overlap by more (IoU) the worse is dropped.
        detections: per image at most.
    """

    width: PositiveInt = 256
    score_threshold: ClosedUnitInterval = 0.05
    nms_threshold: ClosedUnitInterval = 0.5
    detections: PositiveInt = 100


def build_pyramid(
    config: PyramidHeadConfig,
    make_backbone: MakeBackbone,
    strides: Sequence[int],
    extra: Callable[[int, int], ExtraFPNBlock],
) -> tuple[Backbone, nn.Module]:
    """The backbone, and a neck with levels of ``strides`` and coarser ones on top.

    The neck is an FPN; on a plain vision transformer, whose maps all have one stride, a simple
    pyramid.

    Args:
        config: options of the head.
        make_backbone: builds the backbone.
        strides: of the levels that come from the backbone.
        extra: (channels of the coarsest map, width) → levels on top.

    Raises:
        ValueError: the backbone has no maps for the neck.
    """
    width = config.width
    try:
        backbone = make_backbone(strides)
    except MissingStrideError as error:
        stride, *others = set(error.strides)
        if others:
            raise
        backbone = make_backbone((stride,))
        (channels,) = backbone.channels
        top = extra(channels, width)
        return backbone, SimplePyramid(channels, stride, width, strides, top)
    return backbone, FPN(backbone.channels, width, extra(backbone.channels[-1], width))
