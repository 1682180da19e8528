"""What a run says about its images: every option of the data, typed and checked at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

CropStyle = Literal["auto", "pad", "resized", "none"]
EvalCrop = Literal["auto", "center", "warp"]
Interpolation = Literal["nearest", "bilinear", "bicubic", "lanczos"]

SMALL_IMAGE = 64
"""Up to this side (pixels) an image counts as small: padded crops, and no border cut off."""

WARP_FROM = 384
"""From this side (pixels) evaluation keeps the whole image (the CAS-ViT and ConvNeXt protocol)."""


@dataclass(frozen=True)
class AugmentConfig:
    """Random changes of the training images; evaluation never sees any of them.

    Label smoothing belongs to the loss and drop-path to the model; neither is here.

    Attributes:
        crop: `pad` shifts the image within a border of zeros (small images), `resized` cuts a
            random part and scales it (ImageNet), `none` keeps the centre; `auto` is `pad` up to
            64 pixels and `resized` above.
        padding: border of `pad` in pixels; None is an eighth of the shorter side.
        scale: range of the share of the area that `resized` keeps.
        ratio: range of the width/height ratio that `resized` cuts.
        horizontal_flip: probability of mirroring left to right; None is 0.5, and 0 for figures and
            letters, whose mirror image means something else.
        auto_augment: timm's description of a policy, such as `rand-m9-mstd0.5-inc1`, `original` or
            `augmix-m3-w3`; empty for none.
        color_jitter: strength of random brightness, contrast and saturation; 0 for none.
        erase_probability: probability of erasing a random rectangle (Zhong et al., 2017).
        erase_mode: what fills it: `pixel` noise, `rand` one random colour, `const` zeros.
        mixup: α of mixup's Beta(α, α) distribution; 0 for none.
        cutmix: α of CutMix's Beta(α, α) distribution; 0 for none.
        mix_probability: probability that a batch is mixed at all.
        switch_probability: probability of CutMix when both are on.
        multi_scale: sides in pixels from which every batch draws its (square) resolution, such as
            (160, 192, 224, 256, 288, 320); empty for always `image_size`.
    """

    crop: CropStyle = "auto"
    padding: int | None = None
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    horizontal_flip: float | None = None
    auto_augment: str = ""
    color_jitter: float = 0.0
    erase_probability: float = 0.0
    erase_mode: Literal["pixel", "rand", "const"] = "pixel"
    mixup: float = 0.0
    cutmix: float = 0.0
    mix_probability: float = 1.0
    switch_probability: float = 0.5
    multi_scale: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "multi_scale", tuple(self.multi_scale))
        _one_of("augment.crop", self.crop, ("auto", "pad", "resized", "none"))
        _one_of("augment.erase_mode", self.erase_mode, ("pixel", "rand", "const"))
        for name in ("erase_probability", "mix_probability", "switch_probability"):
            _probability(f"augment.{name}", getattr(self, name))
        if self.horizontal_flip is not None:
            _probability("augment.horizontal_flip", self.horizontal_flip)
        for name in ("color_jitter", "mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise ValueError(f"augment.{name} is {getattr(self, name)}; it cannot be negative")
        if self.padding is not None and self.padding < 0:
            raise ValueError(f"augment.padding is {self.padding}; it cannot be negative")
        for name, upper in (("scale", 1.0), ("ratio", float("inf"))):
            low, high = getattr(self, name)
            if not 0 < low <= high <= upper:
                raise ValueError(
                    f"augment.{name} is ({low}, {high}); it needs 0 < low <= high"
                    + (" <= 1" if upper == 1.0 else "")
                )
        for side in self.multi_scale:
            _positive("augment.multi_scale", side)


@dataclass(frozen=True)
class DataConfig:
    """Which images, at which size, in which batches.

    Attributes:
        source: `digits` (scikit-learn's handwritten digits, bundled), the path of a folder or of a
            zip file with one folder per class, or `torchvision:NAME`, such as
            `torchvision:CIFAR10`.
        root: folder in which torchvision keeps its data sets.
        download: let torchvision download a data set that is missing.
        image_size: side, or (height, width), in pixels.
        batch_size: training images per batch and process.
        eval_batch_size: the same for validation and test; None is `batch_size`.
        workers: data-loading processes; 0 loads in the training process.
        subset: train on this many images only, spread evenly over the classes; None for all.
        val_subset: the same for validation.
        val_fraction: share of the training images held out for validation where the source has
            none; None is 0.1, except that a source with a test split then validates on it.
        test_fraction: the same for the test split; None is 0.1 (0.2 for the digits), except that
            a source with a validation split then tests on it.
        split_seed: seed of the choices *which* images: held-out shares and subsets.
        seed: seed of order, augmentation and mixing.
        interpolation: how images are scaled.
        crop_fraction: evaluation scales the image so that this share of its shorter side remains
            after the centre crop; None is 1 up to 64 pixels and 0.875 above.
        eval_crop: `center` crop or `warp` to the size without a crop; `auto` warps from 384 pixels.
        mean: per channel, of pixels in [0, 1]; None is ImageNet's (0.5 for the digits).
        std: as `mean`.
        verify: what is checked before training: that every file's `headers` can be read, that
            every image decodes (`full`), or `none`.
        cache: keep decoded images in `memory`, `none`, or `auto`: when they fit the limit.
        cache_limit_megabytes: limit of `auto`, in 10⁶ bytes, for all splits together.
        augment: random changes of the training images.
    """

    source: str = "digits"
    root: str = "data"
    download: bool = False
    image_size: int | tuple[int, int] = 32
    batch_size: int = 128
    eval_batch_size: int | None = None
    workers: int = 0
    subset: int | None = None
    val_subset: int | None = None
    val_fraction: float | None = None
    test_fraction: float | None = None
    split_seed: int = 0
    seed: int = 0
    interpolation: Interpolation = "bicubic"
    crop_fraction: float | None = None
    eval_crop: EvalCrop = "auto"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    verify: Literal["headers", "full", "none"] = "headers"
    cache: Literal["auto", "memory", "none"] = "auto"
    cache_limit_megabytes: int = 512
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        size = image_size_pair(self.image_size)
        if not self.source:
            raise ValueError(
                "source is empty; name digits, a folder, a zip file or torchvision:NAME"
            )
        _one_of("interpolation", self.interpolation, ("nearest", "bilinear", "bicubic", "lanczos"))
        _one_of("eval_crop", self.eval_crop, ("auto", "center", "warp"))
        _one_of("verify", self.verify, ("headers", "full", "none"))
        _one_of("cache", self.cache, ("auto", "memory", "none"))
        _positive("batch_size", self.batch_size)
        for name in ("eval_batch_size", "subset", "val_subset"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        for name in ("workers", "cache_limit_megabytes"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it cannot be negative")
        for name in ("val_fraction", "test_fraction"):
            share = getattr(self, name)
            if share is not None and not 0 < share < 1:
                raise ValueError(f"{name} is {share}; it must lie between 0 and 1")
        if (self.val_fraction or 0.0) + (self.test_fraction or 0.0) >= 1:
            raise ValueError("val_fraction and test_fraction together leave nothing to train on")
        if self.crop_fraction is not None and not 0 < self.crop_fraction <= 1:
            raise ValueError(f"crop_fraction is {self.crop_fraction}; it must lie in (0, 1]")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every channel must be positive")
        if self.augment.multi_scale and size[0] != size[1]:
            raise ValueError(
                f"augment.multi_scale draws square batches, but image_size is {size[0]}x{size[1]}; "
                "give a square image_size or leave multi_scale empty"
            )


def image_size_pair(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) of a side or a pair.

    Raises:
        ValueError: it is not one or two whole numbers of at least 1 pixel.
    """
    pair = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(pair) != 2 or not all(
        isinstance(side, int) and not isinstance(side, bool) and side >= 1 for side in pair
    ):
        raise ValueError(
            f"image_size is {image_size!r}; give a side such as 224 or a pair (height, width), "
            "in whole pixels"
        )
    return pair[0], pair[1]


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}")


def _probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}; a probability lies between 0 and 1")


def _positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}; it must be at least 1")
