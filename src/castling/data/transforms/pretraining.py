"""Transforms of pre-training: those of classification, with other defaults and without targets."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from jsonargparse.typing import PositiveFloat, PositiveInt

from castling.data.registry import DataInfo
from castling.data.sample import Batch, Sample
from castling.data.transforms.base import Samples, Size
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)
from castling.utils.randomness import Keys


@dataclass(frozen=True, kw_only=True)
class PretrainingTransformConfig(ClassificationTransformConfig):
    """Size, normalisation, and random changes of the training images.

    Options are those of classification. What is hidden of an image teaches enough: a random part
    and a mirror image are all that MAE and SimMIM change, so these are the defaults.

    Attributes:
        image_size: side, or (height, width), in pixels.
        crop: ``resized`` cuts a random part and scales it, at any size.
        scale: range of the share of the area that ``resized`` keeps.
    """

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 224
    crop: Literal["auto", "pad", "resized", "none"] = "resized"
    scale: tuple[PositiveFloat, PositiveFloat] = (0.2, 1.0)


class PretrainingTransform:
    """Images without whatever targets their source has.

    Args:
        config: sizes and augmentation.
        info: of the source, for the training images; None for all others.
    """

    def __init__(self, config: PretrainingTransformConfig, info: DataInfo | None = None) -> None:
        self._steps = (
            ClassificationEvalTransform(config)
            if info is None
            else ClassificationTrainTransform(config, info)
        )
        self.fixed_size: Size | None = self._steps.fixed_size
        self.random = self._steps.random
        self.sides = self._steps.sides

    def kept_size(self, original: Size) -> Size:
        """As of classification."""
        return self._steps.kept_size(original)

    def resize(self, sample: Sample) -> Sample:
        """As of classification, and the target is dropped."""
        return self._steps.resize(dataclasses.replace(sample, target={}))

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """As of classification."""
        return self._steps.augment(sample, size, others)

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """As of classification."""
        return self._steps.collate(samples, keys, size)
