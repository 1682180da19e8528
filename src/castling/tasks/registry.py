"""Tasks, registered by name; adding one is one folder in ``tasks``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from castling.data.registry import DataInfo
from castling.data.transforms.base import TransformConfig
from castling.models.card import ModelCard
from castling.tasks.interface import Task, TaskConfig
from castling.utils.checks import check_known, config_from_dict
from castling.utils.text import did_you_mean

TaskT = TypeVar("TaskT", bound=type[Task])
_CONFIGS: dict[str, type[TaskConfig]] = {}
_TASKS: dict[type[TaskConfig], type[Task]] = {}


def register_task(config_class: type[TaskConfig]) -> Callable[[TaskT], TaskT]:
    """Class decorator: the task that configurations of ``config_class`` build."""

    def register(task: TaskT) -> TaskT:
        _CONFIGS[config_class.name] = config_class
        _TASKS[config_class] = task
        return task

    return register


def list_tasks() -> list[str]:
    """Names of all registered tasks, sorted."""
    return sorted(_CONFIGS)


def task_config_class(name: str) -> type[TaskConfig]:
    """The configuration class registered under ``name``; ValueError lists the known names."""
    if name not in _CONFIGS:
        raise ValueError(
            f"no task {name!r} (known are {', '.join(list_tasks())}){did_you_mean(name, _CONFIGS)}"
        )
    return _CONFIGS[name]


def task_class(config: TaskConfig) -> type[Task]:
    """The task class registered for a configuration."""
    return _TASKS[type(config)]


def task_to_dict(config: TaskConfig) -> dict[str, Any]:
    """``config`` as plain values for YAML or JSON, ``name`` first."""
    return {"name": config.name, **dataclasses.asdict(config)}


def build_task(config: TaskConfig, info: DataInfo, transform: TransformConfig) -> Task:
    """The task of a configuration for data.

    Raises:
        ValueError: the task cannot learn from this kind of data.
    """
    require_kind(config, info)
    return task_class(config)(config, info, transform)


def require_kind(config: TaskConfig, info: DataInfo) -> None:
    """Raise ValueError where a task has no use for this kind of data."""
    made = task_class(config)
    if info.kind not in made.kinds:
        raise ValueError(
            f"the task {config.name} needs data for {' or '.join(sorted(made.kinds))}, this source "
            f"is for {info.kind}: choose another task or source{made.data_hint}"
        )


def task_from_card(card: ModelCard, path: object = None) -> Task:
    """The task that a saved model was trained for, ready to evaluate and predict.

    Args:
        card: of the model.
        path: where the card was read, for messages.

    Raises:
        ValueError: the card names an unknown task or options.
    """
    try:
        return _task_of(card)
    except ValueError as error:
        raise ValueError(f"{path}: {error}" if path is not None else str(error)) from error


def with_task_options(card: ModelCard, options: Mapping[str, Any] | None) -> ModelCard:
    """The card with other options of its task, such as ``{"inference": "slide"}``.

    Raises:
        ValueError: the task has no such option, or a value does not fit.
    """
    if not options:
        return card
    config_class = task_config_class(str(card.task.get("name")))
    check_known(options, {each.name: None for each in dataclasses.fields(config_class)}, "task")
    return dataclasses.replace(card, task={**card.task, **options})


def _task_of(card: ModelCard) -> Task:
    options = dict(card.task)
    config_class = task_config_class(str(options.pop("name", None)))
    config = config_from_dict(config_class, options, "task")
    made = task_class(config)
    transform = config_from_dict(made.transform_config, card.preprocessing, "preprocessing")
    colours = tuple((red, green, blue) for red, green, blue in card.colours)
    info = DataInfo(card.classes, {}, kind=next(iter(made.kinds)), colours=colours)
    return made(config, info, transform)
