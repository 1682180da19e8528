"""Model, card and task of a recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from castling.data import ImageData
from castling.models.builder import build_model
from castling.models.saved import ModelCard, describe_attention, load_weights
from castling.tasks import ClassificationTask
from castling.tasks.distillation import load_teacher
from castling.train.loading import data_config
from castling.train.recipe import Recipe


def model_arguments(recipe: Recipe, classes: int) -> dict[str, Any]:
    """Keyword arguments of timm.create_model."""
    kwargs: dict[str, Any] = {"num_classes": classes, **recipe.model.kwargs}
    if recipe.model.drop_path is not None:
        kwargs["drop_path_rate"] = recipe.model.drop_path
    return kwargs


def build(recipe: Recipe, data: ImageData) -> tuple[nn.Module, ModelCard]:
    """The recipe's model for the images, with its starting weights, and its card.

    Raises:
        ValueError: no such model, or it does not take what the recipe asks for.
        FileNotFoundError: the starting weights do not exist.
    """
    config = recipe.model
    kwargs = model_arguments(recipe, len(data.classes))
    model = build_model(
        config.name,
        kwargs,
        config.attention,
        config.where,
        image_size=data.image_size,
        pretrained=config.pretrained,
    )
    if config.checkpoint:
        load_weights(model, config.checkpoint)
    size = data.image_size
    card = ModelCard(
        name=config.name,
        kwargs={"img_size": size[0] if size[0] == size[1] else list(size), **kwargs},
        attention=describe_attention(config.attention),
        where=config.where,
        classes=data.classes,
        image_size=size,
        mean=tuple(data.mean),
        std=tuple(data.std),
        interpolation=recipe.data.interpolation,
        crop_fraction=recipe.data.crop_fraction,
        eval_crop=recipe.data.eval_crop,
    )
    set_distilled: Callable[[bool], None] | None = getattr(model, "set_distilled_training", None)
    if set_distilled is not None:
        set_distilled(True)  # timm's DeiT and LeViT then return both heads
    return model, card


def build_task(recipe: Recipe, data: ImageData) -> ClassificationTask:
    """The recipe's task for the images, its teacher loaded.

    Raises:
        ValueError: the teacher does not exist or has other classes.
        FileNotFoundError: the teacher's weights do not exist.
    """
    return ClassificationTask(
        len(data.classes),
        loss=recipe.loss,
        augment=recipe.data.augment,
        seed=data_config(recipe).seed,
        distill=recipe.distill,
        teacher=load_teacher(recipe.distill, len(data.classes), (data.mean, data.std)),
        self_distill=recipe.ema.self_distill,
    )
