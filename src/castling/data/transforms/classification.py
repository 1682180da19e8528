"""Transforms of image classification: fitting, augmentation, batches."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

import torch
from jsonargparse.typing import (
    ClosedUnitInterval,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from torch.nn import functional as F
from torchvision.transforms import v2

from castling.data.errors import DataError
from castling.data.registry import DataInfo
from castling.data.sample import Batch, Sample, stack_samples
from castling.data.transforms.base import Samples, Size, TransformConfig
from castling.data.transforms.batches import shift_and_mirror
from castling.data.transforms.policies import timm_policy
from castling.data.transforms.steps import (
    Fit,
    Interpolation,
    PillowColorJitter,
    RandomResizedCrop,
    apply_steps,
)
from castling.utils.randomness import Keys

SMALL_IMAGE = 64
"""Up to this side (pixels) an image counts as small: padded crops, and no border cut off."""

WARP_FROM = 384
"""From this side (pixels) evaluation keeps the whole image (the CAS-ViT and ConvNeXt protocol)."""


@dataclass(frozen=True, kw_only=True)
class ClassificationTransformConfig(TransformConfig):
    """Size, normalisation, and random changes of the training images.

    Evaluation sees none of the random changes. Mixing and erasing belong to the task, which does
    them on the device.

    Attributes:
        image_size: side, or (height, width), in pixels.
        interpolation: how images are scaled.
        crop_fraction: evaluation scales the image so that this share of its shorter side remains
            after the centre crop; None is 1 up to 64 pixels and 0.875 above.
        eval_crop: ``center`` crop or ``warp`` to the size without a crop; ``auto`` warps from 384
            pixels.
        crop: ``pad`` shifts the image within a border of zeros (small images), ``resized`` cuts a
            random part and scales it (ImageNet), ``none`` keeps the centre; ``auto`` is ``pad`` up
            to 64 pixels and ``resized`` above.
        padding: border of ``pad`` in pixels; None is an eighth of the shorter side.
        scale: range of the share of the area that ``resized`` keeps.
        ratio: range of the width/height ratio that ``resized`` cuts.
        horizontal_flip: probability of mirroring left to right; None is 0.5, and 0 for figures and
            letters, whose mirror image means something else.
        auto_augment: timm's description of a policy, such as ``rand-m9-mstd0.5-inc1``,
            ``original`` or ``augmix-m3-w3``; empty for none.
        color_jitter: strength of random brightness, contrast and saturation; 0 for none.
        multi_scale: sides in pixels from which every batch draws its (square) resolution, such as
            (160, 192, 224, 256, 288, 320); empty for always ``image_size``.
    """

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 32
    interpolation: Interpolation = "bicubic"
    crop_fraction: PositiveFloat | None = None
    eval_crop: Literal["auto", "center", "warp"] = "auto"
    crop: Literal["auto", "pad", "resized", "none"] = "auto"
    padding: NonNegativeInt | None = None
    scale: tuple[PositiveFloat, PositiveFloat] = (0.08, 1.0)
    ratio: tuple[PositiveFloat, PositiveFloat] = (3 / 4, 4 / 3)
    horizontal_flip: ClosedUnitInterval | None = None
    auto_augment: str = ""
    color_jitter: NonNegativeFloat = 0.0
    multi_scale: tuple[PositiveInt, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.crop_fraction is not None and self.crop_fraction > 1:
            raise ValueError(
                f"data.transform.crop_fraction is {self.crop_fraction}; it must lie in (0, 1]"
            )
        for name, upper in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = getattr(self, name)
            if not low <= high <= upper:
                raise ValueError(
                    f"data.transform.{name} is ({low}, {high}); it needs 0 < low <= high"
                    + (" <= 1" if upper == 1.0 else "")
                )
        height, width = self.size
        if self.multi_scale and height != width:
            raise ValueError(
                f"data.transform.multi_scale draws square batches, but image_size is {height}x"
                f"{width}; give a square image_size or leave multi_scale empty"
            )

    def at_size(self, side: int) -> Self:
        """The same options at one size, that of multi-scale batches too."""
        sides = (side,) if self.multi_scale else ()
        return dataclasses.replace(self, image_size=side, multi_scale=sides)

    def at_largest(self) -> Self:
        """The same options with the largest resolution of multi-scale batches alone."""
        return dataclasses.replace(self, multi_scale=tuple(sorted(self.multi_scale)[-1:]))


class ClassificationEvalTransform:
    """What every image goes through outside training: scale and crop, no randomness.

    From 384 pixels the image is warped to the size without a crop, the protocol of CAS-ViT.

    Args:
        config: size and protocol.
    """

    random = False
    sides: tuple[int, ...] = ()

    def __init__(self, config: ClassificationTransformConfig) -> None:
        self.fixed_size = config.size
        smaller = min(config.size)
        warp = smaller >= WARP_FROM if config.eval_crop == "auto" else config.eval_crop == "warp"
        self._fit = Fit(
            config.size,
            warp=warp,
            fraction=config.crop_fraction or (1.0 if smaller <= SMALL_IMAGE else 0.875),
            interpolation=config.interpolation,
        )
        self._interpolation = config.interpolation

    def description(self) -> dict[str, object]:
        """The resize and crop in plain values, as exported files store them.

        ``resize`` is ``"cover"`` (keep the aspect ratio; the smallest size that covers
        ``resize_size``, sides rounded down) or ``"warp"`` (exactly ``resize_size``); ``crop`` is
        ``"center"`` or ``"none"``.
        """
        return {
            "resize": "warp" if self._fit.warp else "cover",
            "resize_size": list(self._fit.cover),
            "crop": "none" if self._fit.warp else "center",
            "interpolation": self._interpolation,
        }

    def kept_size(self, original: Size) -> Size:
        """Always the configured one."""
        return self.fixed_size

    def resize(self, sample: Sample) -> Sample:
        """Scale and crop."""
        return apply_steps(sample, self._fit)

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """The sample as it is."""
        return sample

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """The samples stacked."""
        return samples if isinstance(samples, Batch) else stack_samples(samples)


class ClassificationTrainTransform:
    """Augmentation as the configuration says, every random number drawn from the sample's key.

    Args:
        config: sizes and augmentation.
        info: of the source: whether mirror images keep their class, and the default mean.

    Raises:
        ValueError: timm cannot read ``auto_augment``.
        DataError: mirroring was asked for where it changes the class.
    """

    def __init__(self, config: ClassificationTransformConfig, info: DataInfo) -> None:
        self.size = config.size
        self.sides = config.multi_scale
        small = min(self.size) <= SMALL_IMAGE
        crop = ("pad" if small else "resized") if config.crop == "auto" else config.crop
        self._padding = 0
        if crop == "pad":
            self._padding = min(self.size) // 8 if config.padding is None else config.padding
        if config.horizontal_flip and not info.mirrored:
            raise DataError(
                f"data.transform.horizontal_flip is {config.horizontal_flip}, but the mirror image "
                "of a figure or letter of this source is another one; set it to 0"
            )
        default = 0.5 if info.mirrored else 0.0
        self._flip = default if config.horizontal_flip is None else config.horizontal_flip
        self.fixed_size = None if crop == "resized" else self.size
        self._fit = Fit(self.size, warp=False, fraction=1, interpolation=config.interpolation)
        self._crops: dict[Size, v2.Transform] = {}
        if crop == "resized":
            sizes = {self.size, *((side, side) for side in self.sides)}
            self._crops = {
                size: RandomResizedCrop(
                    size,
                    scale=config.scale,
                    ratio=config.ratio,
                    interpolation=config.interpolation,
                )
                for size in sizes
            }
        self._steps: list[v2.Transform] = []
        if config.auto_augment:
            mean = config.mean or info.mean
            self._steps.append(
                timm_policy(config.auto_augment, self.size, mean, config.interpolation)
            )
        if config.color_jitter:
            self._steps.append(PillowColorJitter(*(config.color_jitter,) * 3))
        self.random = bool(self._crops or self._steps)

    def kept_size(self, original: Size) -> Size:
        """The original's, where random parts of images of all sizes are cut."""
        return self.fixed_size or original

    def resize(self, sample: Sample) -> Sample:
        """Scale and cut the centre, unless a random part will be cut."""
        return sample if self._crops else apply_steps(sample, self._fit)

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """Random resized crop, policy and colour."""
        crop = [self._crops[size or self.size]] if self._crops else []
        return apply_steps(sample, *crop, *self._steps)

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """Padded crop, mirror, resolution; float32 where the whole batch is scaled."""
        batch = samples if isinstance(samples, Batch) else stack_samples(samples)
        images = shift_and_mirror(batch.images, keys, padding=self._padding, flip=self._flip)
        if size is None or tuple(images.shape[2:]) == size:
            return dataclasses.replace(batch, images=images)
        # Rounding to uint8 after this filter would change what the network sees.
        images = F.interpolate(images.float(), size, mode="bilinear", antialias=True)
        valid = torch.tensor(size).expand(len(images), 2)
        return dataclasses.replace(batch, images=images, valid=valid)
