"""Conversion of models by their names or folders, on folders of images."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from castling.attention import AttentionConfig, TokenMixer
from castling.conversion import ConversionConfig, ConversionReport, convert
from castling.data import DataConfig, DataModule, SourceConfig, open_source
from castling.data.config import LoaderConfig
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)
from castling.deploy.opening import open_named
from castling.models.card import CARD, ModelCard
from castling.models.saved import WEIGHTS, save_model
from castling.surgery import Where, attention_layers
from castling.surgery.self_description import attention_arguments
from castling.tasks.normalize import Normalize
from castling.utils.files import refuse_existing, write_json

#: What the conversion measured, beside the converted model.
REPORT = "conversion.json"
#: Share of an image's area that a random part keeps.
_SCALE = (0.35, 1.0)


def convert_saved(
    model: str,
    source: SourceConfig,
    attention: AttentionConfig,
    output: str | os.PathLike[str],
    *,
    where: Where | None = None,
    checkpoint: str | None = None,
    num_classes: int | None = None,
    config: ConversionConfig | None = None,
    loader: LoaderConfig | None = None,
    device: str = "cpu",
    seed: int = 0,
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[ConversionReport, Path]:
    """Convert a pretrained classifier and save it so that every verb opens it.

    Training images are cut and mirrored at random; validation images, or a tenth of the others
    where there are none, are held out for the report. Labels are not looked at.

    Args:
        model: folder of a run or of a saved model, or a name of timm's, whose pretrained weights
            are downloaded unless ``checkpoint`` names a file.
        source: of the images.
        attention: the new attention.
        output: folder of the converted model.
        where: which layers, as for :func:`castling.linearize_`.
        checkpoint: weights for a model of timm's.
        num_classes: of a model of timm's; None takes its own.
        config: of the stages.
        loader: batches and processes.
        device: where it computes.
        seed: of order and random parts.
        overwrite: replace the model that ``output`` holds.
        progress: called with a line now and then.

    Returns:
        What was measured, and the folder written: the saved model and ``conversion.json``.

    Raises:
        FileNotFoundError: no images, no weights.
        FileExistsError: ``output`` holds a model, and ``overwrite`` is False.
        ValueError: a model that is no classifier of images, or cannot be converted; what
            :func:`castling.convert` refuses.
    """
    folder = Path(output)
    refuse_existing((folder / name for name in (WEIGHTS, CARD, REPORT)), overwrite)
    config, loader = config or ConversionConfig(), loader or LoaderConfig(batch_size=32)
    teacher, card = _teacher(model, checkpoint, num_classes)
    images = _images(card, source, loader, seed)
    held_out = min(config.held_out, images.sizes["val"])
    config = dataclasses.replace(config, held_out=held_out)
    progress(
        f"{model}: {images.sizes['train']:,} images to learn from, {held_out} held out for the "
        "report"
    )
    torch.manual_seed(seed)
    student, report = convert(
        teacher.to(device),
        _batches(images, card, held_out, device),
        attention,
        where,
        config,
        progress=_lines(progress),
    )
    # As the student is: layers of the teacher may have been converted before.
    layers = {n: m for n, m in attention_layers(student).items() if isinstance(m, TokenMixer)}
    described = attention_arguments(student, layers)
    described |= {"switched": report.switch is not None or described["switched"], "progress": 1.0}
    card = dataclasses.replace(card, metrics={}, **described)
    certificate = None if report.switch is None else report.switch.to_dict()
    save_model(
        student.cpu(), folder, card, certificate=certificate, pipeline_tag="image-classification"
    )
    write_json(folder / REPORT, report.to_dict() | {"teacher": model, "config": config.to_dict()})
    return report, folder


def _teacher(
    model: str,
    checkpoint: str | None,
    num_classes: int | None,
) -> tuple[nn.Module, ModelCard]:
    """The softmax model, and the card without attention."""
    opened, card = open_named(model, checkpoint, num_classes)
    if card.task.get("name") != "classification":
        raise ValueError(
            f"{model} is a model of {card.task.get('name')}: this converts classifiers. In "
            "Python castling.convert(model, images, compared=…) takes any model"
        )
    if card.folded:
        raise ValueError(f"{model} is folded: convert the model as it was before that")
    return opened, card


def _images(card: ModelCard, source: SourceConfig, loader: LoaderConfig, seed: int) -> DataModule:
    """Training images cut at random, validation images as the model was evaluated."""
    values = card.preprocessing
    kept = {
        key: values[key] for key in ("interpolation", "crop_fraction", "eval_crop") if key in values
    }
    size = values["image_size"]
    transform = ClassificationTransformConfig(
        image_size=size if isinstance(size, int) else tuple(size),
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


def _batches(images: DataModule, card: ModelCard, held_out: int, device: str) -> Iterator[Tensor]:
    """Normalised batches: the images to hold out, then training images for ever."""
    normalize = Normalize(card.preprocessing["mean"], card.preprocessing["std"]).to(device)
    count = held_out
    for batch in images.loader("val"):
        yield normalize(batch.images[:count].to(device))
        count -= len(batch.images)
        if count <= 0:
            break
    training = images.loader("train", training=True)
    for epoch in itertools.count():
        training.sampler.set_epoch(epoch)
        for batch in training:
            yield normalize(batch.images.to(device))


def _lines(progress: Callable[[str], None]) -> Callable[[str, int, int, float], None]:
    """A line for each tenth of a stage."""
    last: dict[str, int] = {}

    def report(stage: str, seen: int, total: int, loss: float) -> None:
        tenth = 10 * seen // total
        if last.get(stage) != tenth:
            last[stage] = tenth
            progress(f"{stage}: {seen:,} of {total:,} views, loss {loss:.4f}")

    return report
