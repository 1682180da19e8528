"""``predictions.csv``: what a trained model says about every image of a split, with examples.

Written at the end of a training run and read by its report.
"""

from __future__ import annotations

import bisect
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from castling.data.errors import plain_data_errors
from castling.data.module import DataModule
from castling.data.sampler import BatchKey
from castling.tasks.interface import Task
from castling.tasks.prediction import Prediction
from castling.utils.files import read_csv, replacing, write_csv
from castling.utils.modes import eval_mode

PREDICTIONS = "predictions.csv"
EXAMPLES = "examples"
#: Up to this side (pixels) an example is kept without loss.
_LOSSLESS = 64

Record = Mapping[str, str]


@torch.inference_mode()
@plain_data_errors()
def write_records(
    task: Task, model: nn.Module, data: DataModule, folder: Path, split: str = "test"
) -> Path | None:
    """Write ``predictions.csv`` and the images in ``examples/`` that the task chooses.

    Args:
        task: decides what is recorded of an image; one without ``record_columns`` records nothing.
        model: on any device; its mode is put back after.
        data: the images.
        folder: of the run.
        split: ``"test"`` gives the images of ``val`` where there are no others.

    Returns:
        the file, or None where the task records nothing.
    """
    if not task.record_columns:
        return None
    parameter = next(model.parameters(), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    task.to(device)
    rows: list[dict[str, Any]] = []
    parts: list[range] = []  # of the rows: those of each image
    with eval_mode(model):
        for batch in data.loader(split):
            found = task.predict(model, batch.to(device))
            for index, prediction in enumerate(found):
                target = {name: values[index] for name, values in batch.targets.items()}
                own = task.records(prediction, target)
                parts.append(range(len(rows), len(rows) + len(own)))
                rows += [{"name": prediction.name, **row} for row in own]
    shutil.rmtree(folder / EXAMPLES, ignore_errors=True)
    images = data.dataset(split)

    def predicted(image: int) -> Prediction:
        batch = images[BatchKey((image,))].to(device)
        with eval_mode(model):
            return task.predict(model, batch)[0]

    for number in task.choose_examples(rows):
        image = bisect.bisect_right(parts, number, key=lambda part: part.stop)
        part = parts[image]
        picture = task.example(
            images.selection.sample(image),
            rows[part.start : part.stop],
            number - part.start,
            partial(predicted, image),
        )
        file = _save(picture, folder / EXAMPLES / f"{number:06}", task.example_side)
        rows[number]["example"] = file.relative_to(folder).as_posix()
    write_csv(folder / PREDICTIONS, ("name", *task.record_columns, "example"), rows)
    return folder / PREDICTIONS


def read_records(folder: Path) -> list[Record]:
    """The rows of a run's ``predictions.csv``; none where there is no such file.

    Raises:
        ValueError: the file is damaged.
    """
    path = folder / PREDICTIONS
    return list(read_csv(path)) if path.is_file() else []


def _save(image: Image.Image, stem: Path, side: int) -> Path:
    """A copy with sides of at most ``side`` pixels; the path with its suffix."""
    image.thumbnail((side, side))
    lossless = max(image.size) <= _LOSSLESS
    path = stem.with_suffix(".png" if lossless else ".jpg")
    with replacing(path) as temporary:
        if lossless:
            image.save(temporary, format="PNG")
        else:
            image.save(temporary, format="JPEG", quality=85)
    return path
