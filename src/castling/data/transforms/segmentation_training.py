"""Augmentation of semantic segmentation: a random part of the image at a random scale.

Where pixels go is decided first and drawn once, image and mask by the same numbers; see
:mod:`castling.data.transforms.placement`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from torchvision import tv_tensors

from castling.data.errors import DataError
from castling.data.registry import DataInfo
from castling.data.sample import Batch, Sample, plain, stack_samples
from castling.data.transforms.base import Samples, Size
from castling.data.transforms.padded import scaled_image
from castling.data.transforms.placement import Placement
from castling.data.transforms.scene import FILL
from castling.data.transforms.segmentation import SegmentationTransformConfig
from castling.data.transforms.steps import RESAMPLING, PillowPhotometricDistort, chance
from castling.utils.labels import IGNORED
from castling.utils.randomness import Keys

_TRIES = 10
"""Parts that are drawn at most until one shows classes in a mixture."""


class SegmentationTrainTransform:
    """Augmentation as the configuration says, every random number drawn from the sample's key.

    An image is scaled, a part of ``image_size`` is cut out at random (a smaller image is padded:
    grey, and ``IGNORED`` in the mask), mirrored, and its colours are changed. Batches have ``mask``
    (B, H, W) uint8.

    Args:
        config: sizes and augmentation.
        info: of the source: whether mirror images keep their class.

    Raises:
        DataError: mirroring was asked for where it changes the class.
    """

    random = True
    sides: tuple[int, ...] = ()
    fixed_size: Size | None = None

    def __init__(self, config: SegmentationTransformConfig, info: DataInfo) -> None:
        self.config = config
        if config.horizontal_flip and not info.mirrored:
            raise DataError(
                f"data.transform.horizontal_flip is {config.horizontal_flip}, but the mirror image "
                "of a figure or letter of this source is another one; set it to 0"
            )
        default = 0.5 if info.mirrored else 0.0
        self._flip = default if config.horizontal_flip is None else config.horizontal_flip
        self._resampling = RESAMPLING[config.interpolation]
        self._distort = (
            PillowPhotometricDistort(p=config.photometric) if config.photometric else None
        )

    def kept_size(self, original: Size) -> Size:
        """The original's, but of a very large image what the largest scale can show of it."""
        height, width = _scaled(self.config.fitted(original), self.config.scale[1])
        return min(original[0], height), min(original[1], width)

    def resize(self, sample: Sample) -> Sample:
        """Scale very large images down, masks with them."""
        size = self.kept_size(sample.original_size)
        mask = plain(sample.target["mask"])
        if tuple(mask.shape) != size:
            nearest = Image.fromarray(mask.numpy()).resize(size[::-1], Image.Resampling.NEAREST)
            mask = torch.from_numpy(np.array(nearest))
        sample = scaled_image(sample, size, self.config.interpolation)
        return dataclasses.replace(sample, target={"mask": mask})

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """Scale, cut, mirror and distort."""
        placement = self._placed(sample)
        image = torch.full((3, *self.config.size), FILL, dtype=torch.uint8)
        height, width = _size_of(sample)
        placement.draw(image, plain(sample.image), (height, width), self._resampling)
        pixels: Any = tv_tensors.Image(image)
        if self._distort is not None:
            pixels = self._distort.transform(pixels, self._distort.make_params([pixels]))
        target = {"mask": self._labels(sample, placement)}
        return dataclasses.replace(sample, image=pixels, target=target)

    def _placed(self, sample: Sample) -> Placement:
        """Where the image lies on a canvas of ``image_size``."""
        kept = _size_of(sample)
        low, high = self.config.scale
        factor = low + (high - low) * float(torch.rand(()))
        scaled = _scaled(self.config.fitted(sample.original_size), factor)
        whole = Placement.whole(kept).scaled(scaled[0] / kept[0], scaled[1] / kept[1])
        placement = self._part(whole, scaled)
        for _ in range(_TRIES - 1):
            if self._mixed(sample, placement):
                break
            placement = self._part(whole, scaled)
        if chance(self._flip):
            placement = placement.mirrored(self.config.size[1])
        return placement.snapped(self.config.size)

    def _part(self, whole: Placement, scaled: Size) -> Placement:
        """A random part of the scaled image, as large as the canvas or the image."""
        height, width = self.config.size
        top = int(torch.randint(max(0, scaled[0] - height) + 1, ()))
        left = int(torch.randint(max(0, scaled[1] - width) + 1, ()))
        part = whole.moved(-top, -left).cut((0.0, 0.0, float(height), float(width)))
        return part.snapped(self.config.size)

    def _mixed(self, sample: Sample, placement: Placement) -> bool:
        """Whether no class takes too much of a part; where nothing is known, that is no mixture."""
        if self.config.cat_max_ratio == 1:
            return True
        counts = self._labels(sample, placement).flatten().bincount(minlength=256)[:IGNORED]
        return bool(counts.max() < self.config.cat_max_ratio * counts.sum())

    def _labels(self, sample: Sample, placement: Placement) -> Tensor:
        """(H, W) mask on the canvas."""
        canvas = torch.full((1, *self.config.size), IGNORED, dtype=torch.uint8)
        mask = plain(sample.target["mask"])[None]
        placement.draw(canvas, mask, _size_of(sample), Image.Resampling.NEAREST)
        return canvas[0]

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """The samples, masks among them, padded and stacked."""
        assert not isinstance(samples, Batch), "samples are kept in memory one at a time"
        batch = stack_samples(samples, multiple=self.config.multiple, fill=FILL)
        masks = batch.targets["mask"]
        assert isinstance(masks, Tensor)
        height, width = batch.images.shape[2:]
        padding = (0, width - masks.shape[2], 0, height - masks.shape[1])
        return dataclasses.replace(batch, targets={"mask": F.pad(masks, padding, value=IGNORED)})


def _scaled(size: Size, factor: float) -> Size:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _size_of(sample: Sample) -> Size:
    """(height, width) of the image as it is kept."""
    height, width = sample.image.shape[1:]
    return int(height), int(width)
