"""QT-ViT: EfficientViT whose attention is quadratic Taylor attention.

Xu et al., "QT-ViT: Improving Linear Attention in ViT with Quadratic Taylor Expansion" (NeurIPS
2024). The network is timm's ``efficientvit_mit``; only its attention modules are replaced.

Notable:
- any height and width: every stride rounds up; the position tables, made for ``img_size``, are
  resized to other grids, or once and for all by ``set_input_size``;
- ``attention=`` puts another registered attention in place, ``shortcut=False`` and
  ``position=False`` leave out the parts that EfficientViT does not have (ablations);
- ``auxiliary=`` of the attention's configuration adds the masked softmax branch of training;
- state names are timm's EfficientViT's plus, under ``context_module.main``, ``bn``,
  ``positional_encoding`` and ``kernel.ones_scale1``; official files call the last ``ones_scale1``
  (taken as it is) and name stem, stages and head otherwise (a matter of ``load_checkpoint``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.efficientvit_mit import (
    EfficientVit,
    EfficientVitBlock,
    EfficientVitLarge,
    ResidualBlock,
)
from torch import Tensor, nn

from castling.attention import AttentionConfig
from castling.attention.multi_scale import MultiScaleAttention


class DroppedResidual(ResidualBlock):
    """timm's residual block with stochastic depth on its main branch.

    Args:
        host: the block to replace; its children are moved here.
        drop_path: probability of leaving out the main branch for a sample in training.
    """

    def __init__(self, host: ResidualBlock, drop_path: float) -> None:
        super().__init__(host.main, host.shortcut, host.pre_norm)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.drop_path(self.main(self.pre_norm(x))) + self.shortcut(x)


class _QTViTMixin(nn.Module):
    """Quadratic Taylor attention for both of timm's EfficientViT classes.

    Args:
        img_size: pixels, one number or (H, W), for which the position tables are made.
        attention: a configuration, a registered name, or a dictionary with ``name``; None means the
            released quadratic Taylor form.
        shortcut: add GELU(BN(v)) in every attention.
        position: add a learned table to the keys of every attention.
        strides: of the stem and of each stage; 2 as published, 1 keeps a sensible grid on small
            images.
        drop_path_rate: stochastic depth of the last residual; grows linearly from 0.
        **network: arguments of timm's class.

    Raises:
        ValueError: an option has no meaning.
    """

    stem: nn.Module
    stages: nn.Sequential
    feature_info: list[dict[str, Any]]

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int] = 224,
        attention: str | AttentionConfig | dict[str, Any] | None = None,
        shortcut: bool = True,
        position: bool = True,
        strides: Sequence[int] = (2, 2, 2, 2, 2),
        drop_path_rate: float = 0.0,
        **network: Any,
    ) -> None:
        super().__init__(**network)
        self._set_strides(strides)
        for block, grid in self._attention_blocks(img_size):
            block.context_module.main = MultiScaleAttention(
                block.context_module.main,
                attention,
                grid=grid,
                shortcut=shortcut,
                position=position,
            )
        if drop_path_rate:
            self._set_drop_path(drop_path_rate)

    def _set_strides(self, strides: Sequence[int]) -> None:
        if len(strides) != 1 + len(self.stages) or not set(strides) <= {1, 2}:
            raise ValueError(
                f"strides must be {1 + len(self.stages)} numbers, each 1 or 2, got {strides}"
            )
        reduction = 1
        for index, (part, stride) in enumerate(
            zip((self.stem, *self.stages), strides, strict=True)
        ):
            reduction *= stride
            for module in part.modules():
                if isinstance(module, nn.Conv2d) and module.stride == (2, 2):
                    module.stride = (stride, stride)
            if index:
                self.feature_info[index - 1]["reduction"] = reduction

    def _attention_blocks(
        self, img_size: int | tuple[int, int]
    ) -> list[tuple[EfficientVitBlock, tuple[int, int]]]:
        """Every block with attention, and its grid (h, w) on images of ``img_size`` pixels."""
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        if min(height, width) < 1:
            raise ValueError(f"img_size must be positive, got {img_size}")
        return [
            (block, (-(-height // info["reduction"]), -(-width // info["reduction"])))
            for stage, info in zip(self.stages, self.feature_info, strict=False)
            for block in stage.modules()
            if isinstance(block, EfficientVitBlock)
        ]

    def _set_drop_path(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise ValueError(f"drop_path_rate must lie in [0, 1), got {rate}")
        places = [
            (parent, name, child)
            for parent in self.modules()
            for name, child in parent.named_children()
            if isinstance(child, ResidualBlock) and child.shortcut is not None
        ]
        for index, (parent, name, child) in enumerate(places):
            share = rate * index / max(len(places) - 1, 1)
            setattr(parent, name, DroppedResidual(child, share))

    def set_input_size(self, img_size: int | tuple[int, int]) -> None:
        """Resize every position table to the grid of ``img_size`` pixels, for good."""
        for block, grid in self._attention_blocks(img_size):
            block.context_module.main.set_grid(grid)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """The attentions' scalars, BN and position tables (the official code decays them)."""
        return {
            f"{prefix}.{name}"
            for prefix, module in self.named_modules()
            if isinstance(module, MultiScaleAttention)
            for name in module.no_weight_decay()
        }


class QTViT(_QTViTMixin, EfficientVit):
    """QT-ViT 1–3 on timm's EfficientViT B; arguments of :class:`_QTViTMixin`."""


class QTViTLarge(_QTViTMixin, EfficientVitLarge):
    """QT-ViT 4–6 on timm's EfficientViT L; arguments of :class:`_QTViTMixin`."""


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        "url": "",
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.95,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.in_conv.conv",
        "classifier": "head.classifier.4",
        **kwargs,
    }


default_cfgs = generate_default_cfgs(
    {f"qt_vit_{number}": _cfg() for number in range(1, 4)}
    | {f"qt_vit_{number}": _cfg(crop_pct=1.0) for number in range(4, 7)}
    | {"qt_vit_pico": _cfg(input_size=(3, 32, 32), pool_size=(4, 4), crop_pct=1.0)}
)


def _create(
    network: type[nn.Module], variant: str, pretrained: bool, **kwargs: Any
) -> QTViT | QTViTLarge:
    return build_model_with_cfg(
        network,
        variant,
        pretrained,
        feature_cfg={
            "flatten_sequential": True,
            "out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)),
        },
        **kwargs,
    )


@register_model
def qt_vit_pico(pretrained: bool = False, **kwargs: Any) -> QTViT | QTViTLarge:
    """Test-sized QT-ViT for images of 32 pixels: attention on 8×8 and 4×4 tokens."""
    network = {
        "widths": (8, 16, 24, 32, 64),
        "depths": (1, 1, 1, 1, 1),
        "head_dim": 16,
        "head_widths": (96, 80),
        "strides": (2, 1, 1, 2, 2),
        "img_size": 32,
    }
    return _create(QTViT, "qt_vit_pico", pretrained, **(network | kwargs))


@register_model
def qt_vit_1(pretrained: bool = False, **kwargs: Any) -> QTViT | QTViTLarge:
    """QT-ViT-1 on EfficientViT-B1: 9.353 M parameters, 0.520 G multiply-accumulates at 224 px."""
    network = {
        "widths": (16, 32, 64, 128, 256),
        "depths": (1, 2, 3, 3, 4),
        "head_dim": 16,
        "head_widths": (1536, 1600),
    }
    return _create(QTViT, "qt_vit_1", pretrained, **(network | kwargs))


@register_model
def qt_vit_2(pretrained: bool = False, **kwargs: Any) -> QTViT | QTViTLarge:
    """QT-ViT-2 on EfficientViT-B2: 24.858 M parameters, 1.586 G multiply-accumulates at 224 px."""
    network = {
        "widths": (24, 48, 96, 192, 384),
        "depths": (1, 3, 4, 4, 6),
        "head_dim": 32,
        "head_widths": (2304, 2560),
    }
    return _create(QTViT, "qt_vit_2", pretrained, **(network | kwargs))


@register_model
def qt_vit_3(pretrained: bool = False, **kwargs: Any) -> QTViT | QTViTLarge:
    """QT-ViT-3 on EfficientViT-B3: 49.701 M parameters, 3.956 G multiply-accumulates at 224 px."""
    network = {
        "widths": (32, 64, 128, 256, 512),
        "depths": (1, 4, 6, 6, 9),
        "head_dim": 32,
        "head_widths": (2304, 2560),
    }
    return _create(QTViT, "qt_vit_3", pretrained, **(network | kwargs))


@register_model
def qt_vit_4(pretrained: bool = False, **kwargs: Any) -> QTViT | QTViTLarge:
    """QT-ViT-4 on EfficientViT-L1: 52.956 M parameters, 5.259 G multiply-accumulates at 224 px."""
    network = {
        "widths": (32, 64, 128, 256, 512),
        "depths": (1, 1, 1, 6, 6),
        "head_dim": 32,
        "head_widths": (3072, 3200),
    }
    return _create(QTViTLarge, "qt_vit_4", pretrained, **(network | kwargs))


@register_model
def qt_vit_5(pretrained: bool = False, **kwargs: Any) -> QTViT | QTViTLarge:
    """QT-ViT-5 on EfficientViT-L2: 64.109 M parameters, 6.951 G multiply-accumulates at 224 px."""
    network = {
        "widths": (32, 64, 128, 256, 512),
        "depths": (1, 2, 2, 8, 8),
        "head_dim": 32,
        "head_widths": (3072, 3200),
    }
    return _create(QTViTLarge, "qt_vit_5", pretrained, **(network | kwargs))


@register_model
def qt_vit_6(pretrained: bool = False, **kwargs: Any) -> QTViT | QTViTLarge:
    """QT-ViT-6 on EfficientViT-L3: 246.841 M parameters, 27.59 G multiply-accumulates at 224 px."""
    network = {
        "widths": (64, 128, 256, 512, 1024),
        "depths": (1, 2, 2, 8, 8),
        "head_dim": 32,
        "head_widths": (6144, 6400),
    }
    return _create(QTViTLarge, "qt_vit_6", pretrained, **(network | kwargs))
