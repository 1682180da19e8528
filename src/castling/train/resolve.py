"""What a recipe leaves to its files: the layers of a plan, the normalisation of starting weights.

A run writes the resolved recipe, so that it says itself what it did and goes on without those
files.
"""

from __future__ import annotations

import dataclasses

from castling.attention import attention_config
from castling.models.names import timm_name
from castling.models.starting_weights import normalisation_of, skeleton
from castling.surgery import convertible, load_plan
from castling.tasks import task_class
from castling.train.recipe import Recipe

Channels = tuple[float, float, float]


def resolved(recipe: Recipe) -> Recipe:
    """The recipe with everything written out that other files decide.

    Raises:
        FileNotFoundError: a plan or the starting weights do not exist.
        ValueError: as :func:`with_plan`, or the card beside the weights is damaged.
    """
    return with_normalisation(with_plan(with_source(recipe)))


def with_source(recipe: Recipe) -> Recipe:
    """The recipe with its source as the task reads it."""
    source = task_class(recipe.task).read_as(recipe.data.source)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, source=source))


def with_normalisation(recipe: Recipe) -> Recipe:
    """The recipe with the mean and std that its starting weights were trained with.

    Those of the saved model, or of timm's description of the architecture. A recipe that says them
    itself, or starts from random weights, stays as it is.
    """
    if not _leaves_normalisation_open(recipe):
        return recipe
    found = normalisation_of(timm_name(recipe.model.name), recipe.model.checkpoint)
    return recipe if found is None else _with_transform(recipe, *found)


def with_normalisation_of(recipe: Recipe, earlier: Recipe) -> Recipe:
    """The recipe with the mean and std of ``earlier``, the same run's, where it leaves them open.

    Runs of earlier versions left them open as well: theirs are the source's.
    """
    if not _leaves_normalisation_open(recipe):
        return recipe
    before = earlier.data.transform
    return _with_transform(recipe, before.mean, before.std)


def _leaves_normalisation_open(recipe: Recipe) -> bool:
    model, transform = recipe.model, recipe.data.transform
    starts = bool(model.pretrained or model.checkpoint)
    return starts and transform.mean is None and transform.std is None


def with_plan(recipe: Recipe) -> Recipe:
    """The recipe with the layers that its plan chose in the place of the plan's file.

    A run then says itself which layers it converted, and goes on without that file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no plan, is for another model or attention, or chose no layer.
    """
    config = recipe.model
    if not isinstance(config.where, str):
        return recipe
    if not config.where.endswith(".json"):
        return _converting(recipe, [config.where])
    plan = load_plan(config.where)
    if config.attention is None:
        raise ValueError(
            f"model.where is {config.where}, a plan for {plan.attention.name}: set model.attention "
            "to it"
        )
    if not plan.linear:
        raise ValueError(
            f"{config.where} leaves softmax in all layers of {plan.model} at "
            f"{plan.image_size[0]}×{plan.image_size[1]} pixels: leave model.attention and "
            "model.where out, or plan at a larger image size"
        )
    size = recipe.data.transform.size
    model = skeleton(config.name, config.kwargs, head=config.head, image_size=size)
    plan.require_fits(convertible(model), attention_config(config.attention))
    return _converting(recipe, list(plan.linear))


def _converting(recipe: Recipe, names: list[str]) -> Recipe:
    return dataclasses.replace(recipe, model=dataclasses.replace(recipe.model, where=names))


def _with_transform(recipe: Recipe, mean: Channels | None, std: Channels | None) -> Recipe:
    transform = dataclasses.replace(recipe.data.transform, mean=mean, std=std)
    return dataclasses.replace(recipe, data=dataclasses.replace(recipe.data, transform=transform))
