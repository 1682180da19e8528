"""From an image to a normalised tensor: fitting, augmentation, batches.

A transform has three stages, so that whatever does not change between epochs can be remembered and
whatever is cheap is done for a whole batch at once:

1. `prepare`: fixed; an RGB image to an RGB image (scale and centre crop, or nothing);
2. `vary`: random, one image at a time (random resized crop, timm's policies, colour);
3. `finish`: one batch of 8-bit tensors (padded crop, mirror, resolution, normalise, erase).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from castling.data.config import (
    SMALL_IMAGE,
    WARP_FROM,
    DataConfig,
    EvalCrop,
    Interpolation,
    image_size_pair,
)
from castling.data.errors import DataError
from castling.data.pixels import Size, fit, normalise, shift_and_mirror, to_pixels
from castling.data.policies import RESAMPLING, policies
from castling.data.sources import IMAGENET_MEAN, IMAGENET_STD
from castling.utils.randomness import (
    Keys,
    global_generators_kept,
    keys,
    seed_global_generators,
)


class Transform(Protocol):
    """The three stages; see the module."""

    @property
    def prepared_size(self) -> Size | None:
        """(height, width) that `prepare` always gives, or None when it leaves sizes alone."""
        ...

    @property
    def varies(self) -> bool:
        """Whether `vary` does anything."""
        ...

    def prepare(self, image: Image.Image) -> Image.Image:
        """The fixed part."""
        ...

    def vary(self, image: Image.Image, key: int, size: Size | None) -> Image.Image:
        """The random part for one image, determined by `key`."""
        ...

    def finish(self, pixels: Tensor, sample_keys: Keys, size: Size | None) -> Tensor:
        """(B, 3, H, W) of uint8 to normalised float32, determined by the keys."""
        ...


class EvalTransform:
    """What every image goes through outside training: no randomness.

    From 384 pixels the image is warped to the size without a crop, the protocol of CAS-ViT.
    Calling it turns one RGB image into a normalised (3, H, W) tensor.
    """

    varies = False

    def __init__(
        self,
        image_size: int | Size,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        crop_fraction: float | None = None,
        eval_crop: EvalCrop = "auto",
        interpolation: Interpolation = "bicubic",
    ) -> None:
        self.prepared_size = image_size_pair(image_size)
        self.mean = tuple(mean)
        self.std = tuple(std)
        smaller = min(self.prepared_size)
        self.warp = smaller >= WARP_FROM if eval_crop == "auto" else eval_crop == "warp"
        self.fraction = crop_fraction or (1.0 if smaller <= SMALL_IMAGE else 0.875)
        self.interpolation = interpolation

    def prepare(self, image: Image.Image) -> Image.Image:
        """Scale and crop."""
        return fit(
            image,
            self.prepared_size,
            warp=self.warp,
            fraction=self.fraction,
            interpolation=self.interpolation,
        )

    def vary(self, image: Image.Image, key: int, size: Size | None) -> Image.Image:
        """The image as it is."""
        return image

    def finish(self, pixels: Tensor, sample_keys: Keys, size: Size | None) -> Tensor:
        """Normalise (B, 3, H, W) of uint8."""
        return normalise(pixels, self.mean, self.std)

    def __call__(self, image: Image.Image) -> Tensor:
        """One RGB image to (3, H, W) of float32."""
        return normalise(to_pixels(self.prepare(image)), self.mean, self.std)


class TrainTransform:
    """Augmentation as `AugmentConfig` says, every random number drawn from the sample's key.

    Calling it with an RGB image and a key gives one normalised (3, H, W) tensor.
    """

    def __init__(
        self,
        config: DataConfig,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        mirrored: bool = True,
    ) -> None:
        augment = config.augment
        self.size = image_size_pair(config.image_size)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.interpolation = config.interpolation
        small = min(self.size) <= SMALL_IMAGE
        self.crop = ("pad" if small else "resized") if augment.crop == "auto" else augment.crop
        self.padding = 0
        if self.crop == "pad":
            self.padding = min(self.size) // 8 if augment.padding is None else augment.padding
        if augment.horizontal_flip and not mirrored:
            raise DataError(
                f"augment.horizontal_flip is {augment.horizontal_flip}, but the mirror image of a "
                "figure or letter of this source is another one; set it to 0"
            )
        default = 0.5 if mirrored else 0.0
        self.flip = default if augment.horizontal_flip is None else augment.horizontal_flip
        self.scale, self.ratio = augment.scale, augment.ratio
        self.prepared_size = None if self.crop == "resized" else self.size
        self.policies = policies(config, mean)
        self.varies = self.crop == "resized" or bool(self.policies)
        self.erase_probability = augment.erase_probability
        self.erase_mode = augment.erase_mode

    def prepare(self, image: Image.Image) -> Image.Image:
        """Scale and cut the centre, unless a random part will be cut."""
        if self.crop == "resized":
            return image
        return fit(image, self.size, warp=False, fraction=1, interpolation=self.interpolation)

    def vary(self, image: Image.Image, key: int, size: Size | None) -> Image.Image:
        """Random resized crop and policies; advances the global CPU generators."""
        from timm.data.transforms import RandomResizedCropAndInterpolation
        from torchvision.transforms.v2 import functional

        seed_global_generators(key)
        if self.crop == "resized":
            box = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
            image = functional.resized_crop(
                image, *box, list(size or self.size), RESAMPLING[self.interpolation]
            )
        for policy in self.policies:
            image = policy(image)
        return image

    def finish(self, pixels: Tensor, sample_keys: Keys, size: Size | None) -> Tensor:
        """Padded crop, mirror, resolution, normalise, erase: (B, 3, H, W) of uint8 to float32."""
        pixels = shift_and_mirror(pixels, sample_keys, padding=self.padding, flip=self.flip)
        if size is not None and tuple(pixels.shape[2:]) != size:
            pixels = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
        images = normalise(pixels, self.mean, self.std)
        if self.erase_probability:
            from timm.data.random_erasing import RandomErasing

            erase = RandomErasing(self.erase_probability, mode=self.erase_mode, device="cpu")
            for image, key in zip(images, sample_keys, strict=True):
                seed_global_generators(int(key) ^ 1)
                erase(image)
        return images

    def __call__(self, image: Image.Image, key: int = 0) -> Tensor:
        """One RGB image to (3, H, W) of float32; the same key gives the same tensor."""
        with global_generators_kept():
            image = self.prepare(image)
            if self.varies:
                image = self.vary(image, key, None)
            sample_keys = np.array([key], dtype=np.uint64)
            return self.finish(to_pixels(image)[None], sample_keys, None)[0]


def train_transform(
    config: DataConfig,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    mirrored: bool = True,
) -> TrainTransform:
    """The training transform of a configuration.

    Args:
        config: sizes and augmentation.
        mean: per channel; None is the configuration's, else ImageNet's.
        std: as `mean`.
        mirrored: whether a mirror image still belongs to its class.

    Raises:
        ValueError: timm cannot read `augment.auto_augment`.
        DataError: mirroring was asked for where it changes the class.
    """
    return TrainTransform(
        config,
        mean or config.mean or IMAGENET_MEAN,
        std or config.std or IMAGENET_STD,
        mirrored=mirrored,
    )


def eval_transform(
    config: DataConfig,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> EvalTransform:
    """The evaluation transform of a configuration; arguments as in `train_transform`."""
    return EvalTransform(
        config.image_size,
        mean or config.mean or IMAGENET_MEAN,
        std or config.std or IMAGENET_STD,
        crop_fraction=config.crop_fraction,
        eval_crop=config.eval_crop,
        interpolation=config.interpolation,
    )


def sample_keys_of(seed: int, epoch: int, indices: Sequence[int]) -> Keys:
    """The augmentation key of every (seed, epoch, index)."""
    return keys(seed, epoch, np.asarray(indices, dtype=np.int64))
