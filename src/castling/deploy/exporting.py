"""Exports of models on disk."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from torch import Tensor

from castling.data import DataConfig
from castling.deploy.saved_data import model_folder, validation_images
from castling.export import ExportReport, export
from castling.models.card import ModelCard
from castling.models.saved import open_model
from castling.tasks import Task, task_from_card

#: Images that a file is compared on, where its task wants real ones.
_IMAGES = 8


def export_saved(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    data: DataConfig | None = None,
    **options: Any,
) -> ExportReport:
    """Open a saved model, export it and prove that the file computes the same.

    A detector's file is compared on validation images, since there is nothing to find in noise.

    Args:
        path: a run's folder (its switched model is taken where there is one) or a saved model's.
        output: the file; None is ``model.onnx`` in ``path``.
        input_size: (height, width) in pixels; None is that of training.
        data: images to compare on, its validation split; None takes those of the run, where the
            model's task asks for images and they can be read.
        **options: further arguments of :func:`castling.export`.

    Returns:
        The report.

    Raises:
        FileNotFoundError: no saved model, or none of the images of ``data``.
        ValueError: as of :func:`castling.export`; or ``data`` has other classes.
        ExportError: as of :func:`castling.export`; nothing is written.
    """
    folder = model_folder(path)
    model, card = open_model(folder)
    task = task_from_card(card, folder)
    return export(
        model,
        output or Path(path) / "model.onnx",
        input_size or task.input_size,
        images=_images(task, card, folder, data),
        card=card,
        **options,
    )


def _images(task: Task, card: ModelCard, folder: Path, data: DataConfig | None) -> Tensor | None:
    """The first validation images of one size; None where the task needs none or there are none."""
    if data is None and not task.verified_on_data:
        return None
    try:
        return next(validation_images(task, card, folder, data, _IMAGES))
    except (OSError, ValueError):
        if data is not None:
            raise
        return None  # the images have moved; the report says that nothing was found in noise
