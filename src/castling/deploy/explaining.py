"""Explanation of models by their names or folders, on image files."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor, nn

from castling.data.errors import DataError
from castling.data.sample import Sample
from castling.deploy.images import ImageLike, complaint_about, expanded, sample_of
from castling.deploy.opening import open_named
from castling.deploy.saved_data import model_folder
from castling.explanation import Explanation, explain
from castling.explanation.explain import MAX_TOKENS
from castling.explanation.result import FIGURES, PAGE
from castling.models.card import ModelCard
from castling.surgery import Where
from castling.tasks import task_from_card
from castling.tasks.normalize import Normalize
from castling.utils.devices import read_device
from castling.utils.files import refuse_existing


def explain_saved(
    model: str,
    images: Sequence[ImageLike],
    output: str | os.PathLike[str],
    *,
    teacher: str | None = None,
    layers: Where | None = None,
    limit: int = 8,
    unswitched: bool = False,
    checkpoint: str | None = None,
    teacher_checkpoint: str | None = None,
    num_classes: int | None = None,
    max_tokens: int = MAX_TOKENS,
    device: str = "cpu",
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> tuple[Explanation, Path]:
    """Explain a saved model, or one of timm's, and write the page.

    Args:
        model: folder of a run (its switched model is taken where there is one) or of a saved model,
            or a name of timm's, whose pretrained weights are downloaded unless ``checkpoint`` names
            a file.
        images: files, folders and whatever else predictors take.
        output: folder of the page.
        teacher: a model to show beside it, named likewise; it must take images of the same size.
        layers: as for :func:`castling.explain`.
        limit: of more images evenly spread ones are taken.
        unswitched: a run's model as trained, with its auxiliary branches.
        checkpoint: weights for a model of timm's.
        teacher_checkpoint: weights for a teacher of timm's.
        num_classes: of models of timm's; of a teacher, None takes the model's.
        max_tokens: as for :func:`castling.explain`.
        device: where it computes.
        overwrite: replace the explanation that ``output`` holds.
        progress: called with a line now and then.

    Returns:
        What was found, and the page's path.

    Raises:
        FileNotFoundError: no such model, image or weights.
        NotADirectoryError: ``output`` is a file.
        FileExistsError: ``output`` holds an explanation, and ``overwrite`` is False.
        ValueError: no images; one that cannot be read; a teacher for images of another size; what
            :func:`castling.explain` refuses.
    """
    if Path(output).exists() and not Path(output).is_dir():
        raise NotADirectoryError(f"{output} is a file: name a folder for the page")
    refuse_existing((Path(output) / name for name in (PAGE, FIGURES)), overwrite)
    samples = _samples(images, limit, progress)
    network, card = _opened(model, checkpoint, num_classes, unswitched)
    second: nn.Module | None = None
    if teacher is not None:
        theirs = num_classes
        if theirs is None and not Path(teacher).is_dir():
            theirs = len(card.classes)
        second, second_card = _opened(teacher, teacher_checkpoint, theirs, unswitched)
        if second_card.image_size != card.image_size:
            raise ValueError(
                f"the teacher {teacher} takes images of {_size_of(second_card)}, {model} of "
                f"{_size_of(card)}: explain them one by one"
            )
    place = read_device(device)
    pixels = _pixels(card, samples, model)
    explanation = explain(
        network.to(place),
        Normalize(card.mean, card.std)(pixels),
        teacher=None if second is None else second.to(place),
        teacher_images=None
        if second is None
        else Normalize(second_card.mean, second_card.std)(pixels),
        layers=layers,
        classes=card.classes or None,
        teacher_classes=None if second is None else second_card.classes or None,
        names=[Path(sample.name).name for sample in samples],
        mean=card.mean,
        std=card.std,
        max_tokens=max_tokens,
        model_name=_title(model, card),
        teacher_name="" if second is None else _title(str(teacher), second_card),
        progress=progress,
    )
    return explanation, explanation.save(output, overwrite=overwrite)


def _samples(
    images: Sequence[ImageLike], limit: int, progress: Callable[[str], None]
) -> list[Sample]:
    notes: list[str] = []
    found = list(expanded(images, notes))
    if not found:
        raise ValueError("there are no images: name files or folders of images")
    chosen = found
    if len(found) > limit:
        chosen = [found[i * len(found) // limit] for i in range(limit)]
        progress(f"{limit} of {len(found):,} images, evenly spread; --limit takes more")
    samples = []
    for index, image in enumerate(chosen):
        try:
            samples.append(sample_of(index, image, notes))
        except FileNotFoundError as error:
            raise FileNotFoundError(complaint_about(image, error)) from error
        except (OSError, DataError) as error:
            raise ValueError(complaint_about(image, error)) from error
    for note in notes:
        progress(f"note: {note}")
    return samples


def _opened(
    model: str, checkpoint: str | None, num_classes: int | None, unswitched: bool
) -> tuple[nn.Module, ModelCard]:
    folder = model if unswitched or not Path(model).is_dir() else str(model_folder(model))
    return open_named(folder, checkpoint, num_classes)


def _pixels(card: ModelCard, samples: Sequence[Sample], model: str) -> Tensor:
    """(n, 3, H, W) in [0, 255], scaled and cut as the model was evaluated."""
    transform = task_from_card(card, model).transform(training=False)
    keys = np.zeros(len(samples), dtype=np.uint64)
    return transform.collate([transform.resize(sample) for sample in samples], keys, None).images


def _title(model: str, card: ModelCard) -> str:
    """The folder's name, or timm's."""
    return Path(model).resolve().name if Path(model).is_dir() else card.name


def _size_of(card: ModelCard) -> str:
    return "×".join(map(str, card.image_size)) + " pixels"
