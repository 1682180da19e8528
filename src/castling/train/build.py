"""Data, task, model and card of a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import nn

from castling.attention import attention_config
from castling.data import BatchKey, DataModule, SplitRecord, open_source
from castling.data.advice import training_notes
from castling.models.builder import build_model
from castling.models.card import ModelCard, describe_attention
from castling.models.saved import load_weights
from castling.tasks import Task, build_task, task_class, task_to_dict
from castling.train.optimization import check_optimizer
from castling.train.recipe import Recipe


def check(recipe: Recipe) -> None:
    """Refuse what cannot work, before data is opened or a folder made.

    Raises:
        ValueError: with what is wrong and what to do.
        FileNotFoundError: weights or a teacher that do not exist.
    """
    check_optimizer(recipe.optim)
    check_hardware(recipe)
    if recipe.model.checkpoint and not Path(recipe.model.checkpoint).exists():
        raise FileNotFoundError(f"model.checkpoint: there is nothing at {recipe.model.checkpoint}")
    if recipe.model.attention is not None:
        attention_config(recipe.model.attention)
    task_class(recipe.task).check(recipe)


def check_hardware(recipe: Recipe) -> None:
    """Raise ValueError where the recipe asks for a GPU that is not there."""
    if recipe.hardware.accelerator == "gpu" and not torch.cuda.is_available():
        raise ValueError(
            "hardware.accelerator is gpu, but PyTorch finds none on this machine: leave it at "
            "auto, or choose cpu"
        )


def open_data(
    recipe: Recipe, record: SplitRecord | None = None, *, take_in: bool = False
) -> tuple[DataModule, Task]:
    """The recipe's images and its task for them.

    Args:
        recipe: what is to be trained.
        record: the split of the run that goes on; None draws one.
        take_in: let images that are not in the record join its splits.

    Raises:
        FileNotFoundError: the images do not exist.
        ValueError: options do not fit the data; as DataError, when the data is at fault.
    """
    config = recipe.data
    if recipe.hardware.workers is not None:
        loader = dataclasses.replace(config.loader, workers=recipe.hardware.workers)
        config = dataclasses.replace(config, loader=loader)
    source = open_source(config.source)
    task = build_task(recipe.task, source.info, config.transform)
    data = DataModule(
        source,
        config,
        task.transform(training=True),
        task.transform(training=False),
        seed=recipe.seed,
        record=record,
        take_in=take_in,
    )
    processes = max(1, recipe.hardware.devices) * recipe.hardware.nodes
    data.notes += tuple(training_notes(data, processes))
    return data, task


def build(recipe: Recipe, task: Task) -> tuple[nn.Module, ModelCard]:
    """The recipe's model for the task, with its starting weights, and its card.

    Raises:
        ValueError: no such model, or it does not take what the recipe asks for.
        FileNotFoundError: the starting weights do not exist.
    """
    config = recipe.model
    preprocessing = task.preprocessing()
    size = preprocessing["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    kwargs: dict[str, Any] = {**task.model_arguments(), **config.kwargs}
    if config.drop_path is not None:
        kwargs["drop_path_rate"] = config.drop_path
    model = build_model(
        config.name,
        kwargs,
        config.attention,
        config.where,
        image_size=(height, width),
        pretrained=config.pretrained,
    )
    if config.checkpoint:
        load_weights(model, config.checkpoint)
    card = ModelCard(
        name=config.name,
        classes=task.info.classes,
        preprocessing=preprocessing | {"image_size": (height, width)},
        task=task_to_dict(recipe.task),
        kwargs={"img_size": height if height == width else [height, width], **kwargs},
        attention=describe_attention(config.attention),
        where=config.where,
    )
    task.prepare_training(model)
    return model, card


@torch.no_grad()
def check_forward(model: nn.Module, task: Task, data: DataModule) -> None:
    """Run one image through the model, so that a wrong size fails before anything is written.

    Raises:
        ValueError: the model does not take the images, or its outputs do not fit the task.
    """
    batch = data.dataset("val")[BatchKey((0,))]
    images = task.preprocess(batch.images)
    model.eval()
    try:
        output = model(images)
    except (RuntimeError, AssertionError, ValueError) as error:
        height, width = images.shape[-2:]
        raise ValueError(
            f"the model does not take images of {height}×{width} pixels: {error}. Set "
            "data.transform.image_size, or model.kwargs such as patch_size"
        ) from error
    finally:
        model.train()
    task.check_output(output)
