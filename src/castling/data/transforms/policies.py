"""timm's augmentation policies from their descriptions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from PIL import Image

from castling.data.transforms.base import Size
from castling.data.transforms.steps import RESAMPLING, ImagePolicy, Interpolation


def timm_policy(
    description: str, size: Size, mean: Sequence[float], interpolation: Interpolation
) -> ImagePolicy:
    """A policy of timm as a step.

    Args:
        description: such as ``rand-m9-mstd0.5-inc1``, ``original`` or ``augmix-m3-w3``.
        size: (height, width) of the images, for the length of shifts.
        mean: per channel, of pixels in [0, 1]; fills what a rotation uncovers.
        interpolation: of rotations and shears.

    Raises:
        ValueError: timm cannot read the description.
    """
    from timm.data import auto_augment as timm_policies

    kind = description.split("-")[0]
    build = {
        "rand": timm_policies.rand_augment_transform,
        "augmix": timm_policies.augment_and_mix_transform,
    }.get(kind, timm_policies.auto_augment_transform)
    hints: dict[str, Any] = {
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": RESAMPLING[interpolation],
    }
    if kind != "augmix":  # AugMix moves images by a share of their size
        hints["translate_const"] = int(min(size) * 0.45)
    try:
        policy = build(description, hints)
    except (AssertionError, KeyError, ValueError, IndexError) as error:
        raise ValueError(
            f"data.transform.auto_augment is {description!r}, which timm cannot read ({error!r}); "
            "write for example rand-m9-mstd0.5-inc1, original or augmix-m3-w3"
        ) from error
    for operation in _operations(policy):
        if operation.aug_fn is timm_policies.posterize:
            operation.aug_fn = _posterize
    return ImagePolicy(policy)


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
