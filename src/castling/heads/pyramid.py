"""Backbone and feature pyramid, of plain vision transformers too."""

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

#: (channels of the coarsest map, width of the levels) → coarser levels on top.
MakeExtra = Callable[[int, int], ExtraFPNBlock]


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
    width: int,
    make_backbone: MakeBackbone,
    strides: Sequence[int],
    extra: MakeExtra | None = None,
) -> tuple[Backbone, nn.Module]:
    """The backbone, and a neck with levels of ``strides`` and coarser ones on top.

    The neck is an FPN; on a plain vision transformer, whose maps all have one stride, a simple
    pyramid.

    Args:
        width: channels of every level.
        make_backbone: builds the backbone.
        strides: of the levels that come from the backbone.
        extra: (channels of the coarsest map, width) → levels on top; None for none.

    Raises:
        ValueError: the backbone has no maps for the neck.
    """
    backbone, simple = simple_if_plain(width, make_backbone, strides, extra)
    if simple is not None:
        return backbone, simple
    top = extra(backbone.channels[-1], width) if extra else None
    return backbone, FPN(backbone.channels, width, top)


def simple_if_plain(
    width: int,
    make_backbone: MakeBackbone,
    strides: Sequence[int],
    extra: MakeExtra | None = None,
) -> tuple[Backbone, SimplePyramid | None]:
    """The backbone with maps of ``strides``; a plain one with a simple pyramid of these levels.

    Args:
        width: channels of the simple pyramid.
        make_backbone: see :func:`build_pyramid`.
        strides: see :func:`build_pyramid`.
        extra: levels on top of the simple pyramid.

    Raises:
        ValueError: the backbone has no maps of these strides, and is not plain.
    """
    try:
        return make_backbone(strides), None
    except MissingStrideError as error:
        stride, *others = set(error.strides)
        if others:
            raise
    backbone = make_backbone((stride,))
    (channels,) = backbone.channels
    top = extra(channels, width) if extra else None
    return backbone, SimplePyramid(channels, stride, width, strides, top)


def maps_of(
    width: int, make_backbone: MakeBackbone, strides: Sequence[int]
) -> tuple[Backbone, nn.Module, tuple[int, ...]]:
    """The backbone, a neck to maps of ``strides``, and their channels.

    The neck passes maps of a pyramid on; on a plain vision transformer it is a simple pyramid.

    Args:
        width: channels of the simple pyramid.
        make_backbone: see :func:`build_pyramid`.
        strides: see :func:`build_pyramid`.
    """
    backbone, simple = simple_if_plain(width, make_backbone, strides)
    if simple is None:
        return backbone, nn.Identity(), backbone.channels
    return backbone, simple, (width,) * len(strides)
