"""``predictions.csv``: what a trained model says about every image of a split, with examples.

Written at the end of a training run and read by its report.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from castling.data.errors import plain_data_errors
from castling.data.module import DataModule
from castling.data.sampler import BatchKey
from castling.tasks.interface import Task
from castling.utils.files import read_csv, replacing, write_csv
from castling.utils.modes import eval_mode

PREDICTIONS = "predictions.csv"
EXAMPLES = "examples"
#: Longer side of an example image in pixels.
_SIDE = 128
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
    with eval_mode(model):
        for batch in data.loader(split):
            found = task.predict(model, batch.to(device))
            for index, prediction in enumerate(found):
                target = {name: values[index] for name, values in batch.targets.items()}
                rows.append({"name": prediction.name, **task.record(prediction, target)})
    shutil.rmtree(folder / EXAMPLES, ignore_errors=True)
    images = data.dataset(split)
    for number in task.choose_examples(rows):
        one = images[BatchKey((number,))]
        height, width = one.valid[0].tolist()
        file = _save(one.images[0, :, :height, :width], folder / EXAMPLES / f"{number:06}")
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


def _save(pixels: Tensor, stem: Path) -> Path:
    """A small copy of (3, H, W) in [0, 255]; the path with its suffix."""
    array = pixels.round().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    image = Image.fromarray(array)
    image.thumbnail((_SIDE, _SIDE))
    lossless = max(image.size) <= _LOSSLESS
    path = stem.with_suffix(".png" if lossless else ".jpg")
    with replacing(path) as temporary:
        if lossless:
            image.save(temporary, format="PNG")
        else:
            image.save(temporary, format="JPEG", quality=85)
    return path
