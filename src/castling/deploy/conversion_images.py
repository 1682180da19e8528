"""Images to convert a saved model with: random parts to learn from, whole ones to measure."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from torch import Tensor

from castling.data import DataConfig, DataModule, SourceConfig, open_source
from castling.data.config import LoaderConfig
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)
from castling.models.card import ModelCard
from castling.tasks.normalize import Normalize

#: Share of an image's area that a random part keeps.
_SCALE = (0.35, 1.0)


def conversion_data(
    card: ModelCard,
    source: SourceConfig,
    loader: LoaderConfig,
    seed: int,
    size: tuple[int, int] | None = None,
) -> DataModule:
    """Training images cut at random, validation images cut from the middle.

    Args:
        card: of the model, with size and normalisation of its images.
        source: of the images; labels are not looked at.
        loader: batches and processes.
        seed: of order and random parts.
        size: (height, width) in pixels; None takes the model's.
    """
    values = card.preprocessing
    kept = {
        key: values[key] for key in ("interpolation", "crop_fraction", "eval_crop") if key in values
    }
    transform = ClassificationTransformConfig(
        image_size=size or card.image_size,
        mean=tuple(values["mean"]),
        std=tuple(values["std"]),
        crop="resized",
        scale=_SCALE,
        **kept,
    )
    opened = open_source(source)
    if opened.info.kind not in ("unlabelled", "classification"):
        raise ValueError(
            f"the source {source.name} is of {opened.info.kind}: give a folder or zip file, whose "
            "images are taken without labels"
        )
    return DataModule(
        opened,
        DataConfig(source=source, transform=transform, loader=loader),
        ClassificationTrainTransform(transform, opened.info),
        ClassificationEvalTransform(transform),
        seed=seed,
        read=("train", "val"),
    )


class ConversionImages:
    """Normalised batches: the images to hold out, then training images for ever.

    Args:
        images: training and validation images.
        card: with the normalisation.
        held_out: how many of the validation images come first.
        device: where they go.
        size: (height, width) in pixels.
    """

    def __init__(
        self,
        images: DataModule,
        card: ModelCard,
        held_out: int,
        device: str,
        size: tuple[int, int],
    ) -> None:
        self.images, self.held_out, self.device = images, held_out, device
        #: With which an interrupted conversion must go on.
        self.arguments = {
            "training images": images.sizes["train"],
            "batch size": images.config.loader.batch_size,
            "seed": images.seed,
            "size": list(size),
        }
        self.normalize = Normalize(card.mean, card.std).to(device)
        self._place: int | None = None

    def seek(self, batches: int) -> None:
        """Let the next iteration begin with this batch of training."""
        self._place = batches

    def __iter__(self) -> Iterator[Tensor]:
        if self._place is None:
            count = self.held_out
            for batch in self.images.loader("val"):
                yield self.normalize(batch.images[:count].to(self.device))
                count -= len(batch.images)
                if count <= 0:
                    break
        loader = self.images.loader("train", training=True)
        start, first = divmod(self._place or 0, len(loader))
        for epoch in itertools.count(start):
            loader.sampler.seek(epoch, first if epoch == start else 0)
            for batch in loader:
                yield self.normalize(batch.images.to(self.device))
