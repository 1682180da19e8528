"""The switch for models on disk."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from castling.data import DataConfig, open_images
from castling.data.loading import loaders
from castling.models.saved import ModelCard, open_model, save_model
from castling.surgery import SwitchReport, is_switched, switch_
from castling.train.evaluation import adapted, run_data
from castling.utils.files import write_json


def switch_saved(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    data: DataConfig | None = None,
    images: int = 256,
    tolerance: float = 1e-3,
    force: bool = False,
) -> tuple[SwitchReport, Path]:
    """Open a saved model, cast its auxiliary branches away, save what remains.

    Args:
        path: a run's folder or a saved model's.
        output: folder of the switched model and its certificate.json; None is ``switched`` in
            ``path``, where ``castling predict`` and ``export`` look first.
        data: calibration images, its validation split; None is what the run was trained on.
        images: number of calibration images.
        tolerance: largest relative change of the logits.
        force: switch above the tolerance too.

    Returns:
        the certificate, and the folder written.

    Raises:
        FileNotFoundError: no saved model there.
        ValueError: no data is known, there is nothing to switch, or ``tolerance`` is negative.
        SwitchRefusedError: the tolerance is exceeded and ``force`` is False; nothing is written.
    """
    if not tolerance >= 0:
        raise ValueError(f"tolerance must not be negative, got {tolerance:g}")
    if images < 1:
        raise ValueError(f"images must be at least 1, got {images}")
    model, card = open_model(path)
    if card.switched:
        raise ValueError(f"{path} is switched already")
    if is_switched(model):
        raise ValueError(
            f"{path} has no auxiliary branch: it was trained without one, nothing is to be switched"
        )
    data = data or run_data(path)
    if data is None:
        raise ValueError(
            f"{path} is not a run's folder, so its images are not known: name them with --data"
        )
    batches = _calibration(dataclasses.replace(adapted(data, card), workers=0), images)
    report = switch_(model, batches, tolerance=tolerance, force=force)
    folder = Path(path) / "switched" if output is None else Path(output)
    save_model(model, folder, _switched(card))
    write_json(folder / "certificate.json", report.to_dict())
    return report, folder


def _switched(card: ModelCard) -> ModelCard:
    # Results were measured with the branch; a forced switch may have changed them.
    return dataclasses.replace(card, switched=True, metrics={})


def _calibration(config: DataConfig, images: int) -> Iterator[Tensor]:
    left = images
    for batch, _ in loaders(config, open_images(config)).val:
        yield batch[:left]
        left -= len(batch)
        if left <= 0:
            return
