"""Evaluate a model, or a saved one, on a split of its data or of other images."""

from __future__ import annotations

import dataclasses
import os

import torch
from torch import nn

from castling.data import DataConfig, SplitConfig, open_source
from castling.deploy.saved_data import open_saved_data, run_data
from castling.models.card import ModelCard
from castling.models.saved import open_model
from castling.tasks import (
    DEFAULT_TASK,
    EvaluateResult,
    TaskConfig,
    build_task,
    evaluate_loader,
    task_from_card,
)
from castling.utils.devices import read_device

SPLITS = ("train", "val", "test")


def evaluate(
    model: nn.Module | str | os.PathLike[str],
    data: DataConfig | None = None,
    *,
    task: TaskConfig | None = None,
    split: str = "test",
    device: str | torch.device | None = None,
) -> EvaluateResult:
    """Evaluate a model, or a saved one, on a split of the data.

    Args:
        model: a network, or the folder of a saved model or of a finished run.
        data: which images; a saved model's size, normalisation and resizing replace this config's.
            None means the data of the run that ``model`` is the folder of.
        task: what a network was trained for; None is classification. A saved model knows its own.
        split: ``"train"``, ``"val"`` or ``"test"``; training images without augmentation.
        device: where; None keeps a network's device and puts a saved model on the CPU.

    Raises:
        ValueError: classes differ from those the model knows, there is no such split, or the
            model's weights or outputs are not finite: the message says where.
        FileNotFoundError: no saved model, or no images there.
    """
    if split not in SPLITS:
        raise ValueError(f'split must be "train", "val" or "test", got {split!r}')
    card: ModelCard | None = None
    own: DataConfig | None = None
    if isinstance(model, nn.Module):
        if data is None:
            raise ValueError("a network needs a data config to be evaluated on")
        made = build_task(task or DEFAULT_TASK(), open_source(data.source).info, data.transform)
    else:
        path = model
        model, card = open_model(path)
        made = task_from_card(card, path)
        own = run_data(path, made)
        if data is None:
            data = own
        elif own is not None and (data.source, data.split) == (own.source, SplitConfig()):
            # The run's own images are divided as they were for training.
            data = dataclasses.replace(data, split=own.split)
        if data is None:
            raise ValueError(
                f"{path} is not a run's folder, so its images are not known: name them with --data"
            )
    images = open_saved_data(made, card, data)
    if device is not None:
        model.to(read_device(device))
    found = evaluate_loader(made, model, images.loader(split), split)
    # Images of other data may or may not have been trained on.
    known = own is not None and data.source == own.source
    return dataclasses.replace(
        found,
        notes=images.notes,
        split="val" if split == "test" and not images.has_test else split,
        data=str(data.source),
        held_out=split != "train" if known else None,
    )
