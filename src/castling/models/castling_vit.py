"""Castling-ViT's models: timm hosts whose attention goes through ``linearize_``.

Castling-ViT (You et al., CVPR 2023) shows DeiT, LeViT, MViTv2 and a plain ViT-Base. A host of timm
is built and converted in the same way as a user's pretrained model. Every function
takes the host's keyword arguments, and

* ``attention``: a configuration, a registered name or a dictionary; the default is linear-angular
  attention with a 2-D local residual and a masked softmax branch that training ramps to nothing;
* ``where``: which layers (see ``castling.linearize_``); the default is all. The papers do not say
  which layers of the published models stayed quadratic.

With ``pretrained=True`` the host's own softmax weights are loaded before the conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    model_entrypoint,
    register_model,
)
from timm.models.levit import Levit
from timm.models.mvitv2 import MultiScaleVit, MultiScaleVitCfg
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from castling.attention import LinearAngular, MaskedSoftmax
from castling.models.registry import takes
from castling.surgery import Attention, Where, linearize_

#: The attention of our named models.
CASTLING = LinearAngular(auxiliary=MaskedSoftmax())


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


def _converted(
    host: type[nn.Module], *names: str
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator of the functions below: they take what their host takes, and two more."""
    return takes(host, "attention", "where", *names)


def _castle(
    model: nn.Module, attention: Attention | None = None, where: Where | None = None
) -> nn.Module:
    linearize_(model, CASTLING if attention is None else attention, where)
    return model


def _from_host(
    host: str,
    pretrained: bool,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build timm's ``host`` and convert it, without the registry's own arguments."""
    for name in ("pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"):
        if kwargs.get(name) is None:
            kwargs.pop(name, None)
    return _castle(model_entrypoint(host)(pretrained=pretrained, **kwargs), attention, where)


def _vit(host: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Plain ViT hosts take any image that is a whole number of patches."""
    return _from_host(host, pretrained, **{"dynamic_img_size": True, **kwargs})


def _deit(size: str, pretrained: bool, distilled: bool = False, **kwargs: Any) -> nn.Module:
    host = f"deit_{size}_distilled_patch16_224" if distilled else f"deit_{size}_patch16_224"
    return _vit(host, pretrained, **kwargs)


@register_model
@_converted(VisionTransformer, "distilled")
def castling_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-DeiT-T (published: 5.6 M, 76.0 %). ``distilled=True`` adds the token."""
    return _deit("tiny", pretrained, **kwargs)


@register_model
@_converted(VisionTransformer, "distilled")
def castling_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-DeiT-S. ``distilled=True`` adds the distillation token."""
    return _deit("small", pretrained, **kwargs)


@register_model
@_converted(VisionTransformer, "distilled")
def castling_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-DeiT-B (published: 87.2 M, 84.2 %). ``distilled=True`` adds the token."""
    return _deit("base", pretrained, **kwargs)


@register_model
@_converted(VisionTransformer)
def castling_vit_base_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain ViT-Base under Mask2Former in the paper's semantic segmentation."""
    return _vit("vit_base_patch16_224", pretrained, **kwargs)


@register_model
@_converted(Levit)
def castling_levit_128s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-128S. As all LeViT hosts: distilled heads unless ``distilled=False``."""
    return _from_host("levit_128s", pretrained, **kwargs)


@register_model
@_converted(Levit)
def castling_levit_128(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-128: published about 79.6 % top-1 (read off a figure)."""
    return _from_host("levit_128", pretrained, **kwargs)


@register_model
@_converted(Levit)
def castling_levit_192(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-192: published about 81.3 % top-1 (read off a figure)."""
    return _from_host("levit_192", pretrained, **kwargs)


@register_model
@_converted(Levit)
def castling_levit_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-256: published about 82.6 % top-1 (read off a figure)."""
    return _from_host("levit_256", pretrained, **kwargs)


@register_model
@_converted(Levit)
def castling_levit_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-384: published about 83.7 % top-1 (read off a figure)."""
    return _from_host("levit_384", pretrained, **kwargs)


@register_model
@_converted(MultiScaleVit)
def castling_mvitv2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-T: published about 84.1 % top-1 (read off a figure)."""
    return _from_host("mvitv2_tiny", pretrained, **kwargs)


@register_model
@_converted(MultiScaleVit)
def castling_mvitv2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-S: published about 84.6 % top-1 (read off a figure)."""
    return _from_host("mvitv2_small", pretrained, **kwargs)


@register_model
@_converted(MultiScaleVit)
def castling_mvitv2_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-B: published 51.9 M parameters, 85.0 % top-1."""
    return _from_host("mvitv2_base", pretrained, **kwargs)


def _deit_pico(variant: str, pretrained: bool, **kwargs: Any) -> VisionTransformer:
    options = {
        "img_size": 32,
        "patch_size": 4,
        "embed_dim": 64,
        "depth": 4,
        "num_heads": 2,
        "dynamic_img_size": True,
        **kwargs,
    }
    feature_cfg = {"out_indices": options.pop("out_indices", 3), "feature_cls": "getter"}
    return build_model_with_cfg(
        VisionTransformer, variant, pretrained, feature_cfg=feature_cfg, **options
    )


@register_model
def deit_pico(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """The softmax twin of castling_deit_pico: a ViT of 0.2 M parameters, for tests and studies."""
    return _deit_pico("deit_pico", pretrained, **kwargs)


@register_model
@_converted(VisionTransformer)
def castling_deit_pico(
    pretrained: bool = False,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    """``deit_pico`` converted."""
    return _castle(_deit_pico("castling_deit_pico", pretrained, **kwargs), attention, where)


@register_model
@_converted(Levit)
def castling_levit_pico(
    pretrained: bool = False,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
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
    feature_cfg = {"out_indices": options.pop("out_indices", (0, 1, 2)), "feature_cls": "getter"}
    model = build_model_with_cfg(
        Levit, "castling_levit_pico", pretrained, feature_cfg=feature_cfg, **options
    )
    return _castle(model, attention, where)


@register_model
@_converted(MultiScaleVit)
def castling_mvitv2_pico(
    pretrained: bool = False,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    """An MViTv2 of test size, converted: two stages with pooled q, k and v."""
    cfg = MultiScaleVitCfg(
        depths=(1, 2), embed_dim=(32, 64), num_heads=(1, 2), stride_q=((1, 1), (2, 2))
    )
    feature_cfg = {"out_indices": kwargs.pop("out_indices", 2), "feature_cls": "getter"}
    options = {"img_size": (64, 64), **kwargs}
    model = build_model_with_cfg(
        MultiScaleVit,
        "castling_mvitv2_pico",
        pretrained,
        model_cfg=cfg,
        feature_cfg=feature_cfg,
        **options,
    )
    return _castle(model, attention, where)
