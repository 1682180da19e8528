"""From an image to a normalised tensor: fitting, augmentation, batches.

A transform has three stages, so that whatever does not change between epochs can be remembered and
whatever is cheap is done for a whole batch at once:

1. `prepare`: fixed; an RGB image to an RGB image (scale and centre crop, or nothing);
2. `vary`: random, one image at a time (random resized crop, timm's policies, colour);
3. `finish`: one batch of 8-bit tensors (padded crop, mirror, resolution, normalise, erase).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
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
from castling.data.randomness import (
    Keys,
    global_generators_kept,
    keys,
    seed_global_generators,
    uniform,
)
from castling.data.sources import IMAGENET_MEAN, IMAGENET_STD

Size = tuple[int, int]

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


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


def fit(
    image: Image.Image, size: Size, *, warp: bool, fraction: float, interpolation: Interpolation
) -> Image.Image:
    """Scale an RGB image to (height, width).

    Args:
        image: of any size.
        size: (height, width) wanted.
        warp: change the aspect ratio and keep everything; otherwise scale and cut the centre.
        fraction: share of the limiting side that the centre crop keeps.
        interpolation: name of the filter.
    """
    height, width = size
    if image.size == (width, height) and (warp or fraction == 1):
        return image
    if warp:
        return image.resize((width, height), RESAMPLING[interpolation])
    over_height, over_width = int(height / fraction), int(width / fraction)
    old_width, old_height = image.size
    if over_height * old_width >= over_width * old_height:  # the height is the tighter side
        scaled = max(over_width, int(over_height * old_width / old_height)), over_height
    else:
        scaled = over_width, max(over_height, int(over_width * old_height / old_width))
    if scaled != image.size:
        image = image.resize(scaled, RESAMPLING[interpolation])
    left = round((scaled[0] - width) / 2)
    top = round((scaled[1] - height) / 2)
    return image.crop((left, top, left + width, top + height))


def to_pixels(image: Image.Image) -> Tensor:
    """An RGB image as (3, H, W) of uint8."""
    return torch.from_numpy(np.array(image).transpose(2, 0, 1).copy())


def normalise(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, H, W) in [0, 255], any type, to (pixels/255 − mean)/std in float32."""
    scale = 1 / (255 * torch.tensor(std)).view(3, 1, 1)
    shift = (torch.tensor(mean) / torch.tensor(std)).view(3, 1, 1)
    return pixels.to(torch.float32).mul_(scale).sub_(shift)


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
        self.policies = _policies(config, mean)
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
            scaled = F.interpolate(pixels.float(), size, mode="bilinear", antialias=True)
            pixels = scaled
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


def shift_and_mirror(pixels: Tensor, sample_keys: Keys, *, padding: int, flip: float) -> Tensor:
    """Cut every image at a random place of itself with a border of zeros, and mirror some.

    Args:
        pixels: (B, 3, H, W), any type.
        sample_keys: (B,), decide place and mirror.
        padding: width of the border in pixels.
        flip: probability of mirroring.

    Returns:
        (B, 3, H, W), a new tensor when anything is done.
    """
    count, _, height, width = pixels.shape
    if padding:
        bordered = F.pad(pixels, (padding,) * 4)
        tops = (uniform(sample_keys, 0) * (2 * padding + 1)).astype(int).tolist()
        lefts = (uniform(sample_keys, 1) * (2 * padding + 1)).astype(int).tolist()
        pixels = torch.empty_like(pixels)
        source, target = bordered.numpy(), pixels.numpy()  # slices cost less in NumPy
        for index in range(count):
            top, left = tops[index], lefts[index]
            target[index] = source[index, :, top : top + height, left : left + width]
    if flip:
        mirrored = torch.from_numpy(uniform(sample_keys, 2) < flip).view(count, 1, 1, 1)
        pixels = torch.where(mirrored, pixels.flip(3), pixels)
    return pixels


def _policies(
    config: DataConfig, mean: Sequence[float]
) -> list[Callable[[Image.Image], Image.Image]]:
    """Per-image augmentations of timm and torchvision, in the order in which they are applied."""
    augment = config.augment
    policies: list[Callable[[Image.Image], Image.Image]] = []
    if augment.auto_augment:
        from timm.data import auto_augment as timm_policies

        description = augment.auto_augment
        kind = description.split("-")[0]
        build = {
            "rand": timm_policies.rand_augment_transform,
            "augmix": timm_policies.augment_and_mix_transform,
        }.get(kind, timm_policies.auto_augment_transform)
        hints = {
            "translate_const": int(min(image_size_pair(config.image_size)) * 0.45),
            "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
            "interpolation": RESAMPLING[config.interpolation],
        }
        if kind == "augmix":
            del hints["translate_const"]  # AugMix moves images by a share of their size
        try:
            policies.append(build(description, hints))
        except (AssertionError, KeyError, ValueError, IndexError) as error:
            raise ValueError(
                f"augment.auto_augment is {description!r}, which timm cannot read ({error!r}); "
                "write for example rand-m9-mstd0.5-inc1, original or augmix-m3-w3"
            ) from error
    if augment.color_jitter:
        from torchvision.transforms.v2 import ColorJitter

        strength = augment.color_jitter
        policies.append(ColorJitter(strength, strength, strength))
    return policies


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
