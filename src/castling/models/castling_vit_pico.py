"""Castling-ViT's hosts at test size: for tests, demonstrations and studies on small images."""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.levit import Levit
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from castling.models.castling_vit import build_converted, converted
from castling.models.features import FeatureGetter


def _cfg(**options: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 32, 32),
        "crop_pct": 1.0,
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        **options,
    }


default_cfgs = generate_default_cfgs(
    {
        "deit_pico": _cfg(first_conv="patch_embed.proj", classifier="head"),
        "castling_deit_pico": _cfg(first_conv="patch_embed.proj", classifier="head"),
        "castling_levit_pico": _cfg(
            input_size=(3, 64, 64), first_conv="stem.conv1.linear", classifier="head.linear"
        ),
        "castling_mvitv2_pico": _cfg(
            input_size=(3, 64, 64), first_conv="patch_embed.proj", classifier="head.fc"
        ),
    }
)


def _vit_pico(**kwargs: Any) -> VisionTransformer:
    options = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 4, "num_heads": 2}
    return VisionTransformer(**{**options, "dynamic_img_size": True, **kwargs})


@register_model
def deit_pico(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The softmax twin of castling_deit_pico: a ViT of 0.2 M parameters, for tests and studies."""
    feature_cfg = {"out_indices": kwargs.pop("out_indices", 3), "feature_cls": FeatureGetter}
    return build_model_with_cfg(
        _vit_pico, "deit_pico", pretrained, feature_cfg=feature_cfg, **kwargs
    )


@register_model
@converted(VisionTransformer)
def castling_deit_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-DeiT of test size: deit_pico with linear-angular attention, 0.2 M parameters."""
    return build_converted("castling_deit_pico", _vit_pico, 3, pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """A LeViT of test size, converted: stride 8 stem, three stages."""
    options = {
        "img_size": 64,
        "stem_type": "s8",
        "embed_dim": (32, 48, 64),
        "key_dim": 8,
        "depth": (1, 1, 1),
        "num_heads": (2, 3, 4),
        "down_op": "subsample",
        **kwargs,
    }
    return build_converted("castling_levit_pico", Levit, (0, 1, 2), pretrained, **options)


@register_model
@converted(MultiScaleVit)
def castling_mvitv2_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """An MViTv2 of test size, converted: three stages with pooled q, k and v."""
    cfg = MultiScaleVitCfg(
        depths=(1, 2, 1),
        embed_dim=(32, 64, 96),
        num_heads=(1, 2, 3),
        stride_q=((1, 1), (2, 2), (2, 2)),
    )
    options = {"img_size": (64, 64), "model_cfg": cfg, **kwargs}
    return build_converted("castling_mvitv2_pico", MultiScaleVit, 3, pretrained, **options)
