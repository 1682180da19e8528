"""Evaluate a model on images: accuracy, loss, speed."""

from __future__ import annotations

import dataclasses
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from castling.data import DataConfig, ImageData, ImageSet, open_images
from castling.data.loading import Loader
from castling.models.saved import ModelCard, open_model
from castling.tasks import ClassificationTask
from castling.train.loading import evaluation_loaders, plain_data_errors
from castling.train.recipe_file import load_recipe
from castling.utils.modes import eval_mode


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """What an evaluation found.

    Attributes:
        top1: percent of images whose class was ranked first.
        top5: percent of images whose class was among the first five.
        loss: mean cross entropy.
        images: number of images.
        images_per_second: with loading.
        class_accuracy: top-1 of each class, percent; None for a class without images.
        split: which images.
    """

    top1: float
    top5: float
    loss: float
    images: int
    images_per_second: float
    class_accuracy: dict[str, float | None]
    split: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


@torch.inference_mode()
@plain_data_errors()
def evaluate_loader(
    model: nn.Module, loader: Loader, classes: list[str], split: str
) -> EvaluateResult:
    """Evaluate over a loader, on the device the model is on; its mode is put back after.

    Raises:
        ValueError: there are no images, or the model's logits do not match the classes; as
            DataError, when an image is damaged.
    """
    task = ClassificationTask(len(classes))
    metric = task.new_metric()
    device = next(model.parameters()).device
    started = time.perf_counter()
    count = 0
    with eval_mode(model):
        for images, labels in loader:
            batch = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
            logits = task.evaluate(model, batch)
            if logits.shape[1] != len(classes):
                raise ValueError(
                    f"the model has {logits.shape[1]} classes, the data {len(classes)}: "
                    "it was trained on other data"
                )
            metric.update(logits, batch)
            count += len(images)
    values = metric.compute()
    if not values:
        raise ValueError(f"there are no {split} images")
    return EvaluateResult(
        **values,
        images=count,
        images_per_second=count / (time.perf_counter() - started),
        class_accuracy={
            name: None if math.isnan(value) else value
            for name, value in zip(classes, metric.class_accuracy(), strict=True)
        },
        split=split,
    )


def evaluate(
    model: nn.Module | str | os.PathLike[str],
    data: DataConfig | None = None,
    *,
    split: str = "test",
    device: str | torch.device | None = None,
) -> EvaluateResult:
    """Evaluate a model, or a saved one, on a split of the data.

    Args:
        model: a network, or the folder of a saved model or of a finished run.
        data: which images; a saved model's size, normalisation and resizing replace this config's.
            None means the data of the run that ``model`` is the folder of.
        split: "train", "val" or "test".
        device: where; None keeps a network's device and puts a saved model on the CPU.

    Raises:
        ValueError: classes differ from those the model knows, or there is no such split.
        FileNotFoundError: no saved model, or no images there.
    """
    if split not in ("train", "val", "test"):
        raise ValueError(f'split must be "train", "val" or "test", got {split!r}')
    card: ModelCard | None = None
    if not isinstance(model, nn.Module):
        data = data or run_data(model)
        model, card = open_model(model)
    if data is None:
        raise ValueError("a network needs a data config to be evaluated on")
    if card is not None:
        data = adapted(data, card)
    images = open_images(data)
    if card is not None and images.classes != card.classes:
        raise ValueError(
            f"the model knows the classes {_few(card.classes)}; {data.source} has "
            f"{_few(images.classes)}"
        )
    if device is not None:
        model.to(device)
    return evaluate_loader(model, _split_loader(data, images, split), images.classes, split)


def adapted(data: DataConfig, card: ModelCard) -> DataConfig:
    """``data`` with the size, normalisation and resizing of a model."""
    return dataclasses.replace(
        data,
        image_size=card.image_size,
        mean=card.mean,  # type: ignore[arg-type]
        std=card.std,  # type: ignore[arg-type]
        interpolation=card.interpolation,  # type: ignore[arg-type]
        crop_fraction=card.crop_fraction,
        eval_crop=card.eval_crop,  # type: ignore[arg-type]
        augment=dataclasses.replace(data.augment, multi_scale=()),
    )


def _split_loader(config: DataConfig, data: ImageData, split: str) -> Loader:
    if split == "train":  # in order, without augmentation
        plain = dataclasses.replace(data, val=_plain(data))
        return evaluation_loaders(config, plain)["val"]
    made = evaluation_loaders(config, data)
    return made.get(split, made["val"])


def _plain(data: ImageData) -> ImageSet:
    return ImageSet(data.train.selection, data.val.transform, seed=0)


def run_data(path: str | os.PathLike[str]) -> DataConfig | None:
    """The data that the run in a folder, or in the one above it, was trained on; None without."""
    for folder in (Path(path), Path(path).parent):
        if (folder / "recipe.yaml").is_file():
            return load_recipe(folder / "recipe.yaml").data
    return None


def _few(names: list[str]) -> str:
    text = ", ".join(names[:5])
    return f"{text}, … ({len(names)})" if len(names) > 5 else text
