"""LeViT with a stem of stride 8: backbones of dense models, castled and with softmax attention.

Castling-ViT (You et al., CVPR 2023) puts backbones pre-trained "using the LeViT framework" under
PicoDet; their layout was not published. These sizes were picked so that PicoDet on them costs the
published multiply-accumulates: a proposal, not the authors' models.

Notable:
- timm's LeViT with ``stem_type="s8"``: maps of strides 8, 16, 32; no weights of LeViT fit;
- the auxiliary branch stands in stages 2 and 3 only: at stride 8 an image of 320 pixels has 1,600
  tokens, and the branch alone would take most of the time of training;
- any image size: bias tables, made for ``img_size``, are resized to other grids;
- ``levit_s8_*`` are the same networks with LeViT's own softmax attention, to compare with.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from timm.models.levit import Levit
from torch import nn

from castling.attention import LinearAngular, Softmax
from castling.models.castling_vit import CASTLING, build_converted, converted
from castling.surgery import Attention, Where

_SIZES: dict[str, dict[str, Any]] = {
    "s": {"embed_dim": (64, 128, 160), "depth": (2, 2, 2), "num_heads": (2, 4, 5)},
    "m": {"embed_dim": (80, 160, 240), "depth": (2, 3, 2), "num_heads": (3, 5, 8)},
    "l": {"embed_dim": (128, 256, 384), "depth": (3, 4, 4), "num_heads": (4, 6, 8)},
    "pico": {
        "embed_dim": (32, 48, 64),
        "depth": (1, 1, 1),
        "num_heads": (2, 3, 4),
        "key_dim": 8,
        "img_size": 64,
    },
}
#: Attention by stage, numbered from 0: the auxiliary branch from stride 16 on.
_BY_STAGE = {"stages.0": LinearAngular(), "stages.1": CASTLING, "stages.2": CASTLING}


def _cfg(side: int) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, side, side),
        "crop_pct": 0.9,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.conv1.linear",
        "classifier": "head.linear",
    }


default_cfgs = generate_default_cfgs(
    {
        f"{family}_{size}": _cfg(options.get("img_size", 224))
        for family in ("castling_levit_s8", "levit_s8")
        for size, options in _SIZES.items()
    }
)


def _create(
    name: str,
    pretrained: bool,
    attention: Attention,
    where: Where | None,
    **kwargs: Any,
) -> nn.Module:
    options = {"key_dim": 16, **_SIZES[name.rpartition("_")[2]], "down_op": "subsample", **kwargs}
    host = partial(Levit, stem_type="s8")
    return build_converted(name, host, (0, 1, 2), pretrained, attention, where, **options)


def _castled(
    size: str,
    pretrained: bool,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    if attention is None:
        attention, where = CASTLING, _BY_STAGE if where is None else where
    return _create(f"castling_levit_s8_{size}", pretrained, attention, where, **kwargs)


def _softmax(
    size: str,
    pretrained: bool,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    attention = Softmax() if attention is None else attention
    return _create(f"levit_s8_{size}", pretrained, attention, where, **kwargs)


@register_model
@converted(Levit)
def castling_levit_s8_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling backbone S, for ``picodet_s``."""
    return _castled("s", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_s8_m(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling backbone M, for ``picodet_m``."""
    return _castled("m", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_s8_l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Castling backbone L, for ``picodet_l``."""
    return _castled("l", pretrained, **kwargs)


@register_model
@converted(Levit)
def castling_levit_s8_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The Castling backbone of test size."""
    return _castled("pico", pretrained, **kwargs)


@register_model
@converted(Levit)
def levit_s8_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The softmax twin of castling_levit_s8_s."""
    return _softmax("s", pretrained, **kwargs)


@register_model
@converted(Levit)
def levit_s8_m(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The softmax twin of castling_levit_s8_m."""
    return _softmax("m", pretrained, **kwargs)


@register_model
@converted(Levit)
def levit_s8_l(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The softmax twin of castling_levit_s8_l."""
    return _softmax("l", pretrained, **kwargs)


@register_model
@converted(Levit)
def levit_s8_pico(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """The softmax twin of castling_levit_s8_pico."""
    return _softmax("pico", pretrained, **kwargs)
