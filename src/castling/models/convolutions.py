"""Convolution, BatchNorm and activation: what ESNet, CSP-PAN and several heads are made of."""

from __future__ import annotations

from typing import Any

from timm.layers import ConvNormAct
from torch import nn


def convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    act: bool = True,
    act_layer: type[nn.Module] = nn.Hardswish,
    **factory: Any,
) -> ConvNormAct:
    """Convolution without bias, BatchNorm and, with ``act``, an activation; sizes round up.

    Args:
        in_channels: of the map.
        out_channels: of the result.
        kernel_size: odd.
        stride: of the convolution.
        groups: of the convolution.
        act: whether the activation follows.
        act_layer: class of the activation.
        **factory: ``device`` and ``dtype``.
    """
    return ConvNormAct(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        groups=groups,
        apply_act=act,
        act_layer=act_layer,
        # In place saves no memory in training, and exporters take it apart.
        norm_kwargs={"inplace": False},
        **factory,
    )


def depthwise_separable(
    in_channels: int, out_channels: int, kernel_size: int = 5, *, stride: int = 1
) -> nn.Sequential:
    """A depthwise and a 1×1 convolution, each with BatchNorm and hard-swish."""
    return nn.Sequential(
        convolution(in_channels, in_channels, kernel_size, stride=stride, groups=in_channels),
        convolution(in_channels, out_channels),
    )
