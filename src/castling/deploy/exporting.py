"""Exports of models on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from castling.data import DataConfig
from castling.deploy.saved_data import model_folder, spread_images
from castling.export import ExportReport, Precision, export
from castling.models.card import ModelCard
from castling.models.saved import open_model
from castling.tasks import Task, task_from_card

#: Images that a file is compared on: in fp32, where it must equal the model, and in less.
_FEW, _MANY = 8, 64


def export_saved(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    data: DataConfig | None = None,
    images: int | None = None,
    precision: Precision = "fp32",
    **options: Any,
) -> ExportReport:
    """Open a saved model, export it and prove that the file computes the same.

    A detector's or segmenter's file is compared on validation images, since there is nothing to
    find in noise, and so is every file in fp16 or int8. int8 is calibrated with training images.

    Args:
        path: a run's folder (its switched model is taken where there is one) or a saved model's.
        output: the file; None is ``model.onnx`` in ``path``.
        input_size: (height, width) in pixels; None is that of training.
        data: images to compare on, its validation split; None takes those of the run, where they
            are needed and can be read.
        images: to compare on, at most, and the same number to calibrate int8 with; None is 8 for
            fp32 and 64 for others.
        precision: as of :func:`castling.export`.
        **options: further arguments of :func:`castling.export`.

    Returns:
        The report.

    Raises:
        FileNotFoundError: no saved model, or none of the images of ``data``.
        ValueError: as of :func:`castling.export`; ``data`` has other classes; or int8 finds no
            images.
        ExportError: as of :func:`castling.export`; nothing is written.
    """
    folder = model_folder(path)
    model, card = open_model(folder)
    task = task_from_card(card, folder)
    count = images or (_FEW if precision == "fp32" else _MANY)
    found: dict[str, Tensor] = {}
    if data is not None or task.verified_on_data or precision != "fp32":
        found = _images(task, card, folder, data, count, precision)
    return export(
        model,
        output or Path(path) / "model.onnx",
        input_size or task.input_size,
        images=found.get("val"),
        calibration=found.get("train"),
        precision=precision,
        card=card,
        **options,
    )


def _images(
    task: Task,
    card: ModelCard,
    folder: Path,
    data: DataConfig | None,
    count: int,
    precision: Precision,
) -> dict[str, Tensor]:
    """Images by split; none where they cannot be read and were not asked for."""
    splits = ("val", "train") if precision == "int8" else ("val",)
    try:
        return spread_images(task, card, folder, data, dict.fromkeys(splits, count))
    except (OSError, ValueError):
        if data is not None or precision == "int8":
            raise
        return {}  # the images have moved; the report says what noise does not show
