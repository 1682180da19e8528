"""Augmentations of single images that timm and torchvision offer, built from our configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from PIL import Image

from castling.data.config import DataConfig, image_size_pair

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

Policy = Callable[[Image.Image], Image.Image]


def policies(config: DataConfig, mean: Sequence[float]) -> list[Policy]:
    """What `augment.auto_augment` and `augment.color_jitter` ask for, in order of application.

    Args:
        config: the policies, and the image size and filter they need.
        mean: per channel, fills what a rotation uncovers.

    Raises:
        ValueError: timm cannot read the description.
    """
    augment = config.augment
    found: list[Policy] = []
    if augment.auto_augment:
        found.append(_timm_policy(augment.auto_augment, config, mean))
    if augment.color_jitter:
        from torchvision.transforms.v2 import ColorJitter

        strength = augment.color_jitter
        found.append(ColorJitter(strength, strength, strength))
    return found


def _timm_policy(description: str, config: DataConfig, mean: Sequence[float]) -> Policy:
    from timm.data import auto_augment as timm_policies

    kind = description.split("-")[0]
    build = {
        "rand": timm_policies.rand_augment_transform,
        "augmix": timm_policies.augment_and_mix_transform,
    }.get(kind, timm_policies.auto_augment_transform)
    hints: dict[str, Any] = {
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": RESAMPLING[config.interpolation],
    }
    if kind != "augmix":  # AugMix moves images by a share of their size
        hints["translate_const"] = int(min(image_size_pair(config.image_size)) * 0.45)
    try:
        policy = build(description, hints)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"augment.auto_augment is {description!r}, which timm cannot read ({error!r}); "
            "write for example rand-m9-mstd0.5-inc1, original or augmix-m3-w3"
        ) from error
    for operation in _operations(policy):
        if operation.aug_fn is timm_policies.posterize:
            operation.aug_fn = _posterize
    return policy


def _operations(policy: Any) -> Iterator[Any]:
    """Every single operation of a timm policy."""
    if hasattr(policy, "aug_fn"):
        yield policy
    for member in getattr(policy, "ops", getattr(policy, "policy", ())):
        for part in member if isinstance(member, list | tuple) else (member,):
            yield from _operations(part)


def _posterize(image: Image.Image, bits_to_keep: int, **_: Any) -> Image.Image:
    """As timm's, but at the highest magnitudes timm asks for 0 bits, which Pillow refuses."""
    from PIL import ImageOps

    return image if bits_to_keep >= 8 else ImageOps.posterize(image, max(1, bits_to_keep))
