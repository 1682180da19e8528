"""Evaluate a model, or a saved one, on a split of its data or of other images."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from castling.data import (
    DataConfig,
    DataModule,
    FileSource,
    FolderConfig,
    SplitConfig,
    SplitRecord,
    open_source,
)
from castling.deploy.saved_data import RunData, open_saved_data, run_data
from castling.models.card import ModelCard
from castling.models.saved import open_model
from castling.tasks import (
    DEFAULT_TASK,
    EvaluateResult,
    Task,
    TaskConfig,
    build_task,
    evaluate_loader,
    task_from_card,
    with_task_options,
)
from castling.utils.devices import read_device
from castling.utils.text import few

SPLITS = ("train", "val", "test")
ALL = "all"
"""The split of a result over all images of files that have no splits."""


def evaluate(
    model: nn.Module | str | os.PathLike[str],
    data: DataConfig | None = None,
    *,
    task: TaskConfig | None = None,
    split: str = "test",
    device: str | torch.device | None = None,
    options: Mapping[str, Any] | None = None,
) -> EvaluateResult:
    """Evaluate a model, or a saved one, on a split of the data.

    A run's own images are divided as they were for its training, whatever has been added since. Of
    other files without folders of splits all are taken as test images. Classes in another order
    than a saved model's, or some of them, are matched by name. The notes of the result say so, and
    how many images the run was trained on.

    Args:
        model: a network, or the folder of a saved model or of a finished run.
        data: which images; a saved model's size, normalisation and resizing replace this config's.
            None means the data of the run that ``model`` is the folder of.
        task: what a network was trained for; None is classification. A saved model knows its own.
        split: ``"train"``, ``"val"`` or ``"test"``; training images without augmentation.
        options: of a saved model's task, in the place of its own; such as ``{"augment": {"flip":
            True}}`` of a segmenter.
        device: where; None keeps a network's device and puts a saved model on the CPU.

    Returns:
        The metrics. Its ``split`` is ``"all"`` where all images of files without splits were taken.

    Raises:
        ValueError: the images have classes that the model does not know, there is no such split,
            or the model's weights or outputs are not finite: the message says where.
        FileNotFoundError: no saved model, or no images there.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train", "val" or "test", got {split!r}')
    card: ModelCard | None = None
    own: RunData | None = None
    if isinstance(model, nn.Module):
        if data is None:
            raise ValueError("a network needs a data config to be evaluated on")
        made = build_task(task or DEFAULT_TASK(), open_source(data.source).info, data.transform)
    else:
        path = model
        model, card = open_model(path)
        card = with_task_options(card, options)
        made = task_from_card(card, path)
        own = run_data(path, made)
        if own is None and data is None:
            raise ValueError(
                f"{path} is not a run's folder, so its images are not known: name them with --data"
            )
    if data is not None:
        data = dataclasses.replace(data, source=made.read_as(data.source))
    images, split, trained_on, notes = _open(made, card, own, data, split)
    if device is not None:
        model.to(read_device(device))
    found = evaluate_loader(made, model, images.loader("train" if split == ALL else split), split)
    return dataclasses.replace(
        found,
        notes=(*images.notes, *notes),
        split=_served_by(images) if split == "test" else split,
        data=str(images.config.source),
        trained_on=trained_on,
    )


def _served_by(images: DataModule) -> str:
    """Whose images ``test`` gives; of files with one of ``val`` and ``test`` that is its name."""
    own = images.dataset("test").selection.split
    return "test" if images.has_test or own == "test" else "val"


def _open(
    task: Task, card: ModelCard | None, own: RunData | None, data: DataConfig | None, split: str
) -> tuple[DataModule, str, int | None, list[str]]:
    """Images, which of them are evaluated, how many of them were trained on, and notes on them."""
    config = _own_config(own, data)
    if own is not None and config is not None:
        images = open_saved_data(task, card, config, record=own.record, read=(split,))
        notes = images.changes.lines()
        if own.record is None and isinstance(images.source, FileSource):
            notes.append(
                "the run has no split.json, which earlier versions did not write: its split is "
                f"drawn anew by {config.split.by}; if files came or went since, images trained on "
                "may be among these"
            )
        trained_on, names = _trained_on(images, own.record, split)
        if split != "train" and names:
            notes.append(_too_good(names, len(images.dataset(split))))
        return images, split, trained_on, notes
    assert data is not None  # evaluate() asks for one of both
    source = open_source(data.source)
    whole = (
        split == "test"
        and data.split == SplitConfig()
        and isinstance(source, FileSource)
        and set(source.info.splits) == {"train"}
    )
    read = "train" if whole else split
    images = open_saved_data(task, card, data, whole=whole, read=(read,))
    notes = ["there are no folders of splits, so all images are evaluated"] if whole else []
    split = ALL if whole else split
    trained = set() if own is None or own.record is None else own.record.trained
    if not trained:
        return images, split, None, notes
    seen = [
        images.dataset(read).name(index)
        for index, key in enumerate(images.contents(read))
        if key in trained
    ]
    if seen:
        notes.append(_too_good(seen, len(images.dataset(read))))
    return images, split, len(seen), notes


def _trained_on(
    images: DataModule, record: SplitRecord | None, split: str
) -> tuple[int | None, list[str]]:
    """How many images of a run's own split it was trained on, and those known by their content.

    None for files of a run that did not write its split down: which were which is not known.
    """
    if record is None and isinstance(images.source, FileSource):
        return None, []
    if split == "train":
        return len(images.dataset(split)), []
    if record is None:
        return 0, []
    recorded = record.images.get(split) or record.images.get("val", [])
    trained = record.trained  # a copy among the images held out, or trained on before a change
    names = [image.path for image in recorded if image.key in trained]
    return len(names), names


def _too_good(names: list[str], count: int) -> str:
    return (
        f"the model was trained on {len(names)} of these {count} images, so the figures are too "
        f"good: {few(names, 3)}"
    )


def _own_config(own: RunData | None, data: DataConfig | None) -> DataConfig | None:
    """The run's data section, where its own images are meant; they are divided as for training."""
    if own is None or data is None:
        return None if own is None else own.config
    theirs, ours = data.source, own.config.source
    if isinstance(theirs, FolderConfig) and isinstance(ours, FolderConfig):
        same = os.path.realpath(theirs.path) == os.path.realpath(ours.path)
    else:
        same = theirs == ours
    if not same or data.split != SplitConfig():
        return None
    return dataclasses.replace(own.config, loader=data.loader)
