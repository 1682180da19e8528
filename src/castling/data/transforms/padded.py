"""Images of many sizes: scaled without randomness, padded to a batch, with targets as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from castling.data.decode import image_tensor, pillow_image
from castling.data.sample import Batch, Sample, stack_samples
from castling.data.transforms.base import Samples, Size
from castling.data.transforms.scene import FILL
from castling.data.transforms.steps import RESAMPLING, Interpolation
from castling.utils.randomness import Keys


class PaddedConfig(Protocol):
    """Options of transforms that scale images and pad batches."""

    @property
    def multiple(self) -> int:
        """Sides of batches are multiples of this."""

    @property
    def interpolation(self) -> Interpolation:
        """How images are scaled."""

    def fitted(self, original: Size) -> Size:
        """(height, width) that an image is scaled to."""


class PaddedEvalTransform:
    """What images go through outside training: scaling and padding, no randomness.

    Targets stay in pixels of the original images, complete, a list of one tensor per image:
    predictions are compared there.

    Args:
        config: size and padding.
    """

    random = False
    sides: tuple[int, ...] = ()
    fixed_size: Size | None = None

    def __init__(self, config: PaddedConfig) -> None:
        self.config = config

    def kept_size(self, original: Size) -> Size:
        """That of the scaled image."""
        return self.config.fitted(original)

    def resize(self, sample: Sample) -> Sample:
        """Scale the image alone."""
        size = self.config.fitted(sample.original_size)
        return scaled_image(sample, size, self.config.interpolation)

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """The sample as it is."""
        return sample

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """The samples padded and stacked."""
        return collate_padded(samples, self.config.multiple)


def collate_padded(samples: Sequence[Sample] | Batch, multiple: int) -> Batch:
    """A batch of padded images whose targets are lists, one tensor per image, as they are.

    Args:
        samples: at least one.
        multiple: that the sides of the batch's images are padded to.
    """
    assert not isinstance(samples, Batch), "such samples are kept in memory one at a time"
    bare = [dataclasses.replace(sample, target={}) for sample in samples]
    batch = stack_samples(bare, multiple=multiple, fill=FILL)
    targets: dict[str, Tensor | list[Tensor]] = {
        name: [sample.target[name].as_subclass(Tensor) for sample in samples]
        for name in samples[0].target
    }
    return dataclasses.replace(batch, targets=targets)


def scaled_image(sample: Sample, size: Size, interpolation: Interpolation) -> Sample:
    """The sample with its image alone scaled to (height, width)."""
    if tuple(sample.image.shape[1:]) == size:
        return sample
    image = pillow_image(sample.image).resize(size[::-1], RESAMPLING[interpolation])
    return dataclasses.replace(sample, image=image_tensor(image))
