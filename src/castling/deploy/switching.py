"""The switch for models on disk."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

from castling.data import DataConfig
from castling.deploy.saved_data import validation_images
from castling.models.card import CARD, ModelCard
from castling.models.saved import CERTIFICATE, WEIGHTS, open_model, save_model
from castling.surgery import SwitchReport, is_switched, switch_
from castling.tasks import task_from_card
from castling.utils.files import refuse_existing, write_json


def switch_saved(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    data: DataConfig | None = None,
    images: int = 256,
    tolerance: float = 1e-3,
    force: bool = False,
    overwrite: bool = False,
) -> tuple[SwitchReport, Path]:
    """Open a saved model, cast its auxiliary branches away, save what remains.

    Args:
        path: a run's folder or a saved model's.
        output: folder of the switched model and its certificate.json; None is ``switched`` in
            ``path``, where ``castling predict`` and ``export`` look first.
        data: calibration images, its validation split; None is what the run was trained on.
        images: number of calibration images.
        tolerance: largest relative change of the outputs.
        force: switch above the tolerance too.
        overwrite: replace the model that ``output`` holds.

    Returns:
        the certificate, and the folder written.

    Raises:
        FileNotFoundError: no saved model there.
        ValueError: no data is known, there is nothing to switch, or ``tolerance`` is negative.
        FileExistsError: ``output`` holds a model, and ``overwrite`` is False.
        SwitchRefusedError: the tolerance is exceeded and ``force`` is False; nothing is written.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance:g}")
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    folder = Path(path) / "switched" if output is None else Path(output)
    refuse_existing((folder / name for name in (WEIGHTS, CARD, CERTIFICATE)), overwrite)
    model, card = open_model(path)
    if card.switched:
        raise ValueError(f"{path} is switched already")
    if is_switched(model):
        raise ValueError(
            f"{path} has no auxiliary branch: it was trained without one, nothing is to be switched"
        )
    task = task_from_card(card, path)
    batches = validation_images(task, card, path, data, images)
    report = switch_(model, batches, tolerance=tolerance, force=force, task=task)
    save_model(
        model,
        folder,
        _switched(card),
        certificate=report.to_dict(),
        pipeline_tag=task.pipeline_tag,
        percentages=task.percentages,
    )
    write_json(folder / CERTIFICATE, report.to_dict())
    return report, folder


def _switched(card: ModelCard) -> ModelCard:
    # Results were measured with the branch; a forced switch may have changed them.
    return dataclasses.replace(card, switched=True, metrics={})
