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

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from castling.models.qt_vit_network import QTViT, QTViTLarge
from castling.surgery.self_description import describe_itself


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
    model: QTViT | QTViTLarge = build_model_with_cfg(
        network,
        variant,
        pretrained,
        feature_cfg={
            "flatten_sequential": True,
            "out_indices": kwargs.pop("out_indices", (0, 1, 2, 3)),
        },
        **kwargs,
    )
    describe_itself(model)
    return model


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
