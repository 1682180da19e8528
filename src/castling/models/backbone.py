"""Any model of timm's registry as the backbone of a dense model: feature maps of chosen strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from castling.surgery import Attention, Where, linearize_


class Backbone(nn.Module):
    """A model that returns feature maps, one per stride, the finest first.

    Args:
        body: made by ``timm.create_model(…, features_only=True, out_indices=…)``.
        channels: of each map.
        strides: of each map, in pixels of the image.
        freeze_batchnorm: keep BatchNorm in evaluation mode and its weights fixed; ``train()`` does
            not undo it.
    """

    def __init__(
        self,
        body: nn.Module,
        channels: Sequence[int],
        strides: Sequence[int],
        *,
        freeze_batchnorm: bool = False,
    ) -> None:
        super().__init__()
        self.body = body
        self.channels, self.strides = tuple(channels), tuple(strides)
        self.freeze_batchnorm = freeze_batchnorm
        if freeze_batchnorm:
            for norm in self._norms():
                norm.requires_grad_(False)
            self.train(self.training)

    def _norms(self) -> list[_BatchNorm]:
        return [module for module in self.body.modules() if isinstance(module, _BatchNorm)]

    def train(self, mode: bool = True) -> Backbone:
        """As every module's; frozen BatchNorm stays in evaluation mode."""
        super().train(mode)
        if self.freeze_batchnorm:
            for norm in self._norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → maps (B, C_i, H/stride_i, W/stride_i)."""
        maps = self.body(images)
        return [_channels_first(each, c) for each, c in zip(maps, self.channels, strict=True)]


class MissingStrideError(ValueError):
    """A model has no feature map of a stride.

    Attributes:
        strides: of the maps that it has.
    """

    def __init__(self, name: str, missing: int, strides: Sequence[int]) -> None:
        found = ", ".join(map(str, dict.fromkeys(strides)))
        super().__init__(f"{name} has no feature map of stride {missing}, only of {found}")
        self.strides = tuple(strides)


def _channels_first(feature: Tensor, channels: int) -> Tensor:
    """(B, C, H, W) of a map that may be (B, H, W, C), as timm's Swin gives it."""
    if feature.shape[1] == channels:
        return feature
    return feature.permute(0, 3, 1, 2).contiguous()


def build_backbone(
    name: str,
    kwargs: dict[str, Any],
    strides: Sequence[int],
    *,
    attention: Attention | None = None,
    where: Where | None = None,
    pretrained: bool = False,
    freeze_batchnorm: bool = False,
) -> Backbone:
    """A model of timm's registry as a backbone.

    Args:
        name: in the registry, ours included.
        kwargs: further keyword arguments of the model.
        strides: of the maps wanted, the finest first.
        attention: put into it; None keeps what it has.
        where: which of its attention layers; None means all.
        pretrained: load timm's weights (needs the network).
        freeze_batchnorm: see :class:`Backbone`.

    Raises:
        MissingStrideError: the model has no map of a stride.
    """
    with torch.device("meta"):
        info = timm.create_model(name, features_only=True, **kwargs).feature_info
    found = info.reduction()
    missing = [stride for stride in strides if stride not in found]
    if missing:
        raise MissingStrideError(name, missing[0], found)
    indices = [max(i for i, each in enumerate(found) if each == stride) for stride in strides]
    body = timm.create_model(
        name, pretrained=pretrained, features_only=True, out_indices=indices, **kwargs
    )
    if attention is not None:
        linearize_(body, attention, where)
    return Backbone(body, body.feature_info.channels(), strides, freeze_batchnorm=freeze_batchnorm)
