"""ESNet, the "enhanced ShuffleNet" that PicoDet was published with.

Yu et al., "PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices" (arXiv 2111.00902).

Notable:
- a purely convolutional stock backbone to compare Castling backbones with: strides 8, 16, 32;
- ``ratios`` are the channels inside each block, as the authors' search found them; M and L share
  theirs.
"""

from __future__ import annotations

from typing import Any

from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model

from castling.models.esnet_network import ESNet
from castling.models.features import FeatureGetter

_SEARCHED_S = ((0.875, 0.5, 0.5), (0.5, 0.625, 0.5, 0.625, 0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
_SEARCHED_M = ((0.875, 0.5, 1.0), (0.625, 0.5, 0.75, 0.625, 0.625, 0.5, 0.625), (1.0, 0.625, 0.75))


def _cfg(**options: Any) -> dict[str, Any]:
    return {
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "pool_size": (7, 7),
        "crop_pct": 0.875,
        "interpolation": "bicubic",
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "stem.0.conv",
        "classifier": "head",
        **options,
    }


default_cfgs = generate_default_cfgs(
    {f"esnet_{size}": _cfg() for size in "sml"}
    | {"esnet_pico": _cfg(input_size=(3, 64, 64), pool_size=(2, 2))}
)


def _create(variant: str, pretrained: bool, **kwargs: Any) -> ESNet:
    model: ESNet = build_model_with_cfg(
        ESNet,
        variant,
        pretrained,
        feature_cfg={"out_indices": (0, 1, 2), "feature_cls": FeatureGetter},
        **kwargs,
    )
    return model


@register_model
def esnet_s(pretrained: bool = False, **kwargs: Any) -> ESNet:
    """The backbone of PicoDet-S: 603,659 parameters without the classifier."""
    return _create("esnet_s", pretrained, **{"scale": 0.75, "ratios": _SEARCHED_S, **kwargs})


@register_model
def esnet_m(pretrained: bool = False, **kwargs: Any) -> ESNet:
    """The backbone of PicoDet-M: 1,338,026 parameters without the classifier."""
    return _create("esnet_m", pretrained, **{"scale": 1.0, "ratios": _SEARCHED_M, **kwargs})


@register_model
def esnet_l(pretrained: bool = False, **kwargs: Any) -> ESNet:
    """The backbone of PicoDet-L: 2,077,041 parameters without the classifier."""
    return _create("esnet_l", pretrained, **{"scale": 1.25, "ratios": _SEARCHED_M, **kwargs})


@register_model
def esnet_pico(pretrained: bool = False, **kwargs: Any) -> ESNet:
    """An ESNet for tests and demonstrations: one to two blocks a stage, a quarter of the width."""
    ratios = ((0.5,), (0.5, 0.5), (0.5,))
    return _create("esnet_pico", pretrained, **{"scale": 0.25, "ratios": ratios, **kwargs})
