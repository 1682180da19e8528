"""Castling-ViT's models: timm hosts whose attention goes through ``linearize_``.

Castling-ViT (You et al., CVPR 2023) shows DeiT, LeViT, MViTv2 and a plain ViT-Base. A host of timm
is built and converted in the same way as a user's pretrained model. Every function takes the host's
keyword arguments, and

* ``attention``: a configuration, a registered name or a dictionary; the default is linear-angular
  attention with a 2-D local residual and a masked softmax branch that training ramps to nothing;
* ``where``: which layers (see ``castling.linearize_``); the default is all. The papers do not say
  which layers of the published models stayed quadratic.

With ``pretrained=True`` the host's own softmax weights are loaded before the conversion. None of
these models has published weights of its own.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from timm.models import (
    PretrainedCfg,
    build_model_with_cfg,
    generate_default_cfgs,
    get_pretrained_cfg,
    model_entrypoint,
    register_model,
)
from timm.models.levit import Levit
from timm.models.mvitv2 import MultiScaleVit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from castling.attention import LinearAngular, MaskedSoftmax
from castling.models.features import FeatureGetter
from castling.models.registry import takes
from castling.surgery import Attention, Where, linearize_

#: The attention of our named models.
CASTLING = LinearAngular(auxiliary=MaskedSoftmax())
#: Where timm finds weights: fields of a ``PretrainedCfg``.
_SOURCES = ("url", "file", "state_dict", "hf_hub_id", "hf_hub_filename", "source", "tag")
_NO_SOURCE: dict[str, Any] = {**dict.fromkeys(_SOURCES), "custom_load": False}


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


def _own_cfg(name: str, host: str) -> dict[str, Any]:
    """The metadata of ``host`` for the model ``name``: another architecture, without weights."""
    own: dict[str, Any] = {**_NO_SOURCE, "architecture": name}
    return dataclasses.replace(get_pretrained_cfg(host), **own).to_dict()


def build_converted(
    name: str,
    host: Callable[..., nn.Module],
    levels: int | tuple[int, ...],
    pretrained: bool,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a host and convert it inside timm's builder, which adds weights, metadata and features.

    Args:
        name: the model's own, under which its metadata are registered.
        host: from the arguments of the network to a model not yet converted.
        levels: what ``features_only`` gives by default, as timm's ``out_indices``.
        pretrained: load the weights of a model of this name.
        attention: see :func:`castle`.
        where: see :func:`castle`.
        **kwargs: of timm's builder, and of the network.
    """

    def network(**arguments: Any) -> nn.Module:
        return castle(host(**arguments), attention, where)

    if kwargs.get("feature_cls") == "getter":
        kwargs["feature_cls"] = FeatureGetter
    model: nn.Module = build_model_with_cfg(
        network,
        name,
        pretrained,
        feature_cfg={
            "out_indices": kwargs.pop("out_indices", levels),
            "feature_cls": FeatureGetter,
        },
        **kwargs,
    )
    return model


def _from_host(
    name: str,
    host: str,
    levels: int | tuple[int, ...],
    pretrained: bool,
    pretrained_cfg: str | Mapping[str, Any] | PretrainedCfg | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Convert timm's ``host``.

    Weights that timm saved of a model of this name fit behind the conversion; all others are the
    host's and are loaded before it.
    """
    cfg = pretrained_cfg
    if isinstance(cfg, PretrainedCfg):
        cfg = cfg.to_dict()
    # timm's loaders of saved models leave the architecture out.
    saved = isinstance(cfg, Mapping) and cfg.get("architecture") in (None, name)
    source: dict[str, Any] = {"pretrained": pretrained and not saved}
    overlay = dict(pretrained_cfg_overlay or {})
    if source["pretrained"]:
        source |= {
            "pretrained_cfg": cfg,
            "pretrained_cfg_overlay": dict(overlay),
            "cache_dir": cache_dir,
        }
        overlay = {key: value for key, value in overlay.items() if key not in _SOURCES}
        if isinstance(cfg, Mapping):
            cfg = {**cfg, **_NO_SOURCE}
    if not isinstance(cfg, Mapping):  # the tag of the host's weights, or nothing
        cfg = _own_cfg(name, f"{host}.{cfg}" if cfg else host)
    entrypoint = model_entrypoint(host)
    return build_converted(
        name,
        partial(entrypoint, **source),
        levels,
        pretrained and saved,
        pretrained_cfg=cfg,
        pretrained_cfg_overlay={**overlay, "architecture": name},
        pretrained_filter_fn=sys.modules[entrypoint.__module__].checkpoint_filter_fn,
        cache_dir=cache_dir,
        **kwargs,
    )


def _vit(name: str, host: str, pretrained: bool, **kwargs: Any) -> nn.Module:
    """Plain ViT hosts take any image that is a whole number of patches."""
    return _from_host(name, host, 3, pretrained, **{"dynamic_img_size": True, **kwargs})


def _deit(size: str, pretrained: bool, distilled: bool = False, **kwargs: Any) -> nn.Module:
    host = f"deit_{size}_distilled_patch16_224" if distilled else f"deit_{size}_patch16_224"
    return _vit(f"castling_deit_{size}_patch16_224", host, pretrained, **kwargs)


_HOSTS = {
    f"castling_{host}": host
    for host in (
        *("deit_tiny_patch16_224", "deit_small_patch16_224", "deit_base_patch16_224"),
        *("levit_128s", "levit_128", "levit_192", "levit_256", "levit_384"),
        *("mvitv2_tiny", "mvitv2_small", "mvitv2_base"),
    )
} | {"castling_vit_base_patch16": "vit_base_patch16_224"}
# Input size, normalisation and classifier are the host's.
default_cfgs = generate_default_cfgs({name: _own_cfg(name, host) for name, host in _HOSTS.items()})


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
    return _vit("castling_vit_base_patch16", "vit_base_patch16_224", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_128s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-128S. As all LeViT hosts: distilled heads unless ``distilled=False``."""
    return _from_host("castling_levit_128s", "levit_128s", (0, 1, 2), pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_128(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-128: published about 79.6 % top-1 (read off a figure)."""
    return _from_host("castling_levit_128", "levit_128", (0, 1, 2), pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_192(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-192: published about 81.3 % top-1 (read off a figure)."""
    return _from_host("castling_levit_192", "levit_192", (0, 1, 2), pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_256(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-256: published about 82.6 % top-1 (read off a figure)."""
    return _from_host("castling_levit_256", "levit_256", (0, 1, 2), pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_384(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-LeViT-384: published about 83.7 % top-1 (read off a figure)."""
    return _from_host("castling_levit_384", "levit_384", (0, 1, 2), pretrained, **kwargs)


@register_model
@converted(MultiScaleVit)
def castling_mvitv2_tiny(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-T: published about 84.1 % top-1 (read off a figure)."""
    return _from_host("castling_mvitv2_tiny", "mvitv2_tiny", 4, pretrained, **kwargs)


@register_model
@converted(MultiScaleVit)
def castling_mvitv2_small(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-S: published about 84.6 % top-1 (read off a figure)."""
    return _from_host("castling_mvitv2_small", "mvitv2_small", 4, pretrained, **kwargs)


@register_model
@converted(MultiScaleVit)
def castling_mvitv2_base(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling-MViTv2-B: published 51.9 M parameters, 85.0 % top-1."""
    return _from_host("castling_mvitv2_base", "mvitv2_base", 4, pretrained, **kwargs)
