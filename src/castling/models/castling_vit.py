"""Castling-ViT's models: timm hosts whose attention goes through ``linearize_``.

Castling-ViT (You et al., CVPR 2023) shows DeiT, LeViT, MViTv2 and a plain ViT-Base. A host of timm
is built and converted in the same way as a user's pretrained model. Every function takes the host's
keyword arguments, and

* ``attention``: a configuration, a registered name or a dictionary; the default is linear-angular
  attention with a 2-D local residual and a masked softmax branch that training ramps to nothing;
* ``where``: which layers (see ``castling.linearize_``); the default is all. The papers do not say
  which layers of the published models stayed quadratic.

With ``pretrained=True`` the host's own softmax weights are loaded before the conversion.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.models import model_entrypoint, register_model
from timm.models.levit import Levit
from timm.models.mvitv2 import MultiScaleVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from castling.attention import LinearAngular, MaskedSoftmax
from castling.models.registry import takes
from castling.surgery import Attention, Where, linearize_

#: The attention of our named models.
CASTLING = LinearAngular(auxiliary=MaskedSoftmax())


def converted(
    host: type[nn.Module], *names: str
) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Decorator of a model function: it takes what its host takes, and two arguments more."""
    return takes(host, "attention", "where", *names)


def castle(
    model: nn.Module, attention: Attention | None = None, where: Where | None = None
) -> nn.Module:
    """Convert a host, by default to :data:`CASTLING`."""
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
    return castle(model_entrypoint(host)(pretrained=pretrained, **kwargs), attention, where)


def _vit(host: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Plain ViT hosts take any image that is a whole number of patches."""
    return _from_host(host, pretrained, **{"dynamic_img_size": True, **kwargs})


def _deit(size: str, pretrained: bool, distilled: bool = False, **kwargs: Any) -> nn.Module:
    host = f"deit_{size}_distilled_patch16_224" if distilled else f"deit_{size}_patch16_224"
    return _vit(host, pretrained, **kwargs)


@register_model
@converted(VisionTransformer, "distilled")
def castling_deit_tiny_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-DeiT-T (published: 5.6 M, 76.0 %). ``distilled=True`` adds the token."""
    return _deit("tiny", pretrained, **kwargs)


@register_model
@converted(VisionTransformer, "distilled")
def castling_deit_small_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-DeiT-S. ``distilled=True`` adds the distillation token."""
    return _deit("small", pretrained, **kwargs)


@register_model
@converted(VisionTransformer, "distilled")
def castling_deit_base_patch16_224(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-DeiT-B (published: 87.2 M, 84.2 %). ``distilled=True`` adds the token."""
    return _deit("base", pretrained, **kwargs)


@register_model
@converted(VisionTransformer)
def castling_vit_base_patch16(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The plain ViT-Base under Mask2Former in the paper's semantic segmentation."""
    return _vit("vit_base_patch16_224", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_128s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-128S. As all LeViT hosts: distilled heads unless ``distilled=False``."""
    return _from_host("levit_128s", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_128(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-128: published about 79.6 % top-1 (read off a figure)."""
    return _from_host("levit_128", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_192(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-192: published about 81.3 % top-1 (read off a figure)."""
    return _from_host("levit_192", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-256: published about 82.6 % top-1 (read off a figure)."""
    return _from_host("levit_256", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-384: published about 83.7 % top-1 (read off a figure)."""
    return _from_host("levit_384", pretrained, **kwargs)


@register_model
@converted(MultiScaleVit)
def castling_mvitv2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-T: published about 84.1 % top-1 (read off a figure)."""
    return _from_host("mvitv2_tiny", pretrained, **kwargs)


@register_model
@converted(MultiScaleVit)
def castling_mvitv2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-S: published about 84.6 % top-1 (read off a figure)."""
    return _from_host("mvitv2_small", pretrained, **kwargs)


@register_model
@converted(MultiScaleVit)
def castling_mvitv2_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-B: published 51.9 M parameters, 85.0 % top-1."""
    return _from_host("mvitv2_base", pretrained, **kwargs)
