"""The images that belong to a saved model: those of its run, or others fed as the model wants."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from castling.data import (
    DataConfig,
    DataModule,
    SplitRecord,
    data_config_from_dict,
    open_source,
    read_split_record,
)
from castling.data.legacy import upgrade_data, with_old_rules
from castling.data.renumbered import renumbered
from castling.data.sampler import BatchKey
from castling.data.split_record import SPLIT_FILE
from castling.models.card import CARD, ModelCard
from castling.tasks import Task, task_class
from castling.tasks.registry import require_kind
from castling.tasks.result import read_result
from castling.tasks.run_recipe import read_run_recipe
from castling.utils.text import first_line


def model_folder(path: str | os.PathLike[str]) -> Path:
    """The folder of the model to use in a run: the switched one where there is one.

    A folder that is no run, or that holds no switched model, is given back as it is.
    """
    folder = Path(path)
    switched = folder / "switched"
    return switched if (switched / CARD).is_file() else folder


@dataclasses.dataclass(frozen=True)
class RunData:
    """What a run was trained on.

    Attributes:
        config: its data section.
        record: which images it trained, validated and tested on; None for runs of versions that
            did not write it down.
    """

    config: DataConfig
    record: SplitRecord | None


def run_data(path: str | os.PathLike[str], task: Task) -> RunData | None:
    """What the run in a folder, or that the folder belongs to, was trained on; None without a run.

    The models of a run lie in its folder and in ``switched``, ``best``, ``last``,
    ``best/switched`` and ``last/switched``.

    Raises:
        ValueError: the run's recipe or split cannot be read, or the split is not the one that it
            was trained with; the message names the file.
    """
    folder = Path(path).absolute()
    folders = [folder, folder.parent]
    if folder.name == "switched" and folder.parent.name in ("best", "last"):
        folders.append(folder.parent.parent)
    for folder in folders:
        recipe = folder / "recipe.yaml"
        if not recipe.is_file():
            continue
        try:
            data, _ = upgrade_data(read_run_recipe(recipe)["data"])
            config = data_config_from_dict(
                with_old_rules(data), task_class(task.config).transform_config
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{recipe} does not say which images the run had ({first_line(error)}): name them "
                "with --data"
            ) from error
        record = read_split_record(folder)
        trained_with = _split_of_result(folder)
        if trained_with and (record is None or record.digest != trained_with):
            state = "missing" if record is None else "not the one that the run was trained with"
            raise ValueError(
                f"{folder / SPLIT_FILE}, which says what the run was trained on, is {state}: put "
                "the run's own back"
            )
        return RunData(config, record)
    return None


def _split_of_result(folder: Path) -> str:
    """Digest of the split that a finished run was trained with; empty where it is not known."""
    try:
        result = read_result(folder)
    except ValueError:  # damaged; the weights may be whole
        return ""
    return "" if result is None else result.split


def open_saved_data(
    task: Task,
    card: ModelCard | None,
    data: DataConfig,
    *,
    record: SplitRecord | None = None,
    whole: bool = False,
    read: Collection[str] = ("train", "val", "test"),
) -> DataModule:
    """Open images for a task, without augmentation.

    Args:
        task: its transform replaces that of ``data``: size, normalisation and resizing are those
            of the saved model.
        card: of the saved model, for its classes, to which those of the images are matched by name;
            None where there is none.
        data: which images, how they are split and loaded.
        record: the split of the run that these images belong to.
        whole: take all images of a source without splits as its training images.
        read: the splits that will be read; only these are checked.

    Raises:
        ValueError: the images are of another kind or at fault, or have classes that the model does
            not know.
        FileNotFoundError: there are no images.
    """
    source = open_source(data.source)
    require_kind(task.config, source.info)
    if card is not None and card.classes:
        source = renumbered(source, card.classes, str(data.source))
    transform = task.transform(training=False)
    config = dataclasses.replace(data, transform=task.transform_options)
    return DataModule(
        source, config, transform, transform, seed=0, record=record, whole=whole, read=read
    )


def validation_images(
    task: Task,
    card: ModelCard,
    path: str | os.PathLike[str],
    data: DataConfig | None,
    count: int,
) -> Iterator[Tensor]:
    """The first validation images, normalised, in batches (B, 3, H, W).

    Args:
        task: of the saved model.
        card: of the saved model.
        path: its folder.
        data: which images; None is what the run was trained on.
        count: of images in all, at most.

    Raises:
        ValueError: no data is known, or it does not fit the model.
        FileNotFoundError: there are no images.
    """
    for batch in _opened(task, card, path, data, ("val",)).loader("val"):
        yield task.preprocess(batch.images[:count])
        count -= len(batch)
        if count <= 0:
            return


def _opened(
    task: Task,
    card: ModelCard,
    path: str | os.PathLike[str],
    data: DataConfig | None,
    read: Collection[str],
) -> DataModule:
    """The images of a saved model, read in this process; see :func:`validation_images`."""
    own = run_data(path, task)
    record = own.record if own is not None and data in (None, own.config) else None
    data = data or (None if own is None else own.config)
    if data is None:
        raise ValueError(
            f"{path} is not a run's folder, so its images are not known: name them with --data"
        )
    alone = dataclasses.replace(data, loader=dataclasses.replace(data.loader, workers=0))
    return open_saved_data(task, card, alone, record=record, read=read)


def spread_images(
    task: Task,
    card: ModelCard,
    path: str | os.PathLike[str],
    data: DataConfig | None,
    counts: Mapping[str, int],
) -> dict[str, Tensor]:
    """Images of some splits, (N, 3, H, W), normalised, spread evenly over each split.

    The first ones of a folder are often of one class. Images of several sizes are scaled to the
    one that the task evaluates at.

    Args:
        task: of the saved model.
        card: of the saved model.
        path: its folder.
        data: which images; None is what the run was trained on.
        counts: split -> how many, at most; of ``train``, without augmentation.

    Raises:
        ValueError: no data is known, or it does not fit the model.
        FileNotFoundError: there are no images.
    """
    opened = _opened(task, card, path, data, counts)
    found = {}
    for split, count in counts.items():
        images = opened.dataset(split)
        places = np.linspace(0, len(images) - 1, min(count, len(images))).round().astype(int)
        batches = [
            task.preprocess(images[BatchKey((int(place),))].images) for place in np.unique(places)
        ]
        if len({batch.shape for batch in batches}) > 1:
            batches = [_scaled(batch, task.input_size) for batch in batches]
        found[split] = torch.cat(batches)
    return found


def _scaled(images: Tensor, size: tuple[int, int]) -> Tensor:
    return interpolate(images, size, mode="bilinear", antialias=True)
