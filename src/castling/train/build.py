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
from castling.models.arguments import takes_image_size
from castling.models.builder import build_model
from castling.models.card import ModelCard, describe_attention
from castling.models.dense import head_config, head_spec, head_to_dict
from castling.models.names import split_name, timm_name
from castling.models.published import published_weights
from castling.models.starting_weights import check_start, start_from
from castling.surgery import LoadReport
from castling.tasks import Task, build_task, task_class, task_to_dict
from castling.train.hardware import check_hardware, process_count
from castling.train.loggers import check_loggers
from castling.train.optimization import check_optimizer
from castling.train.recipe import Recipe


def check(recipe: Recipe, *, resumed: bool = False) -> None:
    """Refuse what cannot work, before data is opened or a folder made.

    Args:
        recipe: what is about to be trained.
        resumed: whether a checkpoint of the run itself takes the place of starting weights.

    Raises:
        ValueError: with what is wrong and what to do.
        FileNotFoundError: images, weights or a teacher that do not exist.
        ModuleNotFoundError: a logger's package is not installed.
    """
    check_optimizer(recipe.optim)
    check_hardware(recipe.hardware)
    check_loggers(recipe.save.loggers)
    recipe.data.source.check_exists()  # before the network is asked for weights
    _check_head(recipe)
    if not resumed:
        check_starting_weights(recipe)
        if recipe.model.pretrained:
            published_weights(timm_name(recipe.model.name))
    if recipe.model.attention is not None:
        attention_config(recipe.model.attention)
    task_class(recipe.task).check(recipe)


def _check_head(recipe: Recipe) -> None:
    """Refuse a model without the kind of head that the task needs, or options that it lacks."""
    config = recipe.model
    head, _ = split_name(config.name)
    if not head:
        if config.head:
            raise ValueError(
                f"model.head has the options {', '.join(config.head)}, but model.name is "
                f"{config.name}: only dense models, HEAD/BACKBONE, have a head of their own"
            )
        return
    timm_name(config.name)
    task = head_spec(head).task
    if task != recipe.task.name:
        raise ValueError(
            f"model.name is {config.name}, a model for {task}, and the task is "
            f"{recipe.task.name}: set task to {task}, or take the backbone alone"
        )
    head_config(head, config.head)


def check_starting_weights(recipe: Recipe) -> None:
    """Refuse starting weights that do not fit the recipe's model.

    Raises:
        FileNotFoundError: they do not exist.
        ValueError: they do not fit, or are no plain finite weights.
    """
    config = recipe.model
    if not config.checkpoint:
        return
    if not Path(config.checkpoint).exists():
        raise FileNotFoundError(
            f"model.checkpoint: there is nothing at {Path(config.checkpoint).absolute()}; give a "
            "file of weights or the folder of a run"
        )
    check_start(
        config.checkpoint,
        config.name,
        config.kwargs,
        config.attention,
        config.where,
        head=config.head,
        image_size=recipe.data.transform.size,
        key=config.checkpoint_key,
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
    data.notes += tuple(training_notes(data, process_count(recipe.hardware)))
    return data, task


def build(
    recipe: Recipe, task: Task, *, resumed: bool = False
) -> tuple[nn.Module, ModelCard, LoadReport | None]:
    """The recipe's model for the task, with its starting weights.

    Args:
        recipe: which model.
        task: what for.
        resumed: whether a checkpoint of the run itself takes the place of starting weights.

    Returns:
        the model, its card, and what was taken of the starting weights; None without any.

    Raises:
        ValueError: no such model, or it does not take what the recipe asks for.
        FileNotFoundError: the starting weights do not exist.
    """
    config = recipe.model
    assert not isinstance(config.where, str), "resolved() has read it"
    preprocessing = task.preprocessing()
    size = preprocessing["image_size"]
    height, width = (size, size) if isinstance(size, int) else size
    needed = task.model_arguments()
    for name, value in needed.items():
        if config.kwargs.get(name, value) != value:
            raise ValueError(
                f"model.kwargs.{name} is {config.kwargs[name]!r}, the data needs {value!r}: leave "
                f"model.kwargs.{name} out"
            )
    kwargs: dict[str, Any] = {**needed, **config.kwargs}
    if config.drop_path is not None:
        kwargs["drop_path_rate"] = config.drop_path
    model = build_model(
        config.name,
        kwargs,
        config.attention,
        config.where,
        head=config.head,
        image_size=(height, width),
        pretrained=config.pretrained and not resumed,
    )
    report = None
    if config.checkpoint and not resumed:
        report = start_from(
            model,
            config.checkpoint,
            key=config.checkpoint_key,
            classes=task.info.classes,
            mean=preprocessing["mean"],
            std=preprocessing["std"],
        )
    head, _ = split_name(config.name)
    sized = {"img_size": height if height == width else [height, width]}
    card = ModelCard(
        name=config.name,
        classes=task.info.classes,
        preprocessing=preprocessing | {"image_size": (height, width)},
        task=task_to_dict(recipe.task),
        head=head_to_dict(head, head_config(head, config.head)) if head else None,
        kwargs={**(sized if takes_image_size(timm_name(config.name)) else {}), **kwargs},
        attention=describe_attention(config.attention),
        colours=[list(colour) for colour in task.info.colours],
        where=config.where,
    )
    task.prepare_training(model)
    return model, card, report


def see_training_data(task: Task, data: DataModule) -> None:
    """Show a task the training images that its options may follow from.

    Raises:
        ValueError: an option does not fit them.
    """
    chosen = data.dataset("train").selection
    task.see_training_labels(chosen.labels)
    task.see_training_images(chosen)


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
        reason = str(error).rstrip(".")
        raise ValueError(
            f"the model does not take images of {height}×{width} pixels: {reason}. Set "
            "data.transform.image_size, or model.kwargs such as patch_size"
        ) from error
    finally:
        model.train()
    task.check_output(output)
