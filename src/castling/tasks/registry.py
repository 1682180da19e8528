"""Tasks, registered by name; adding one is one folder in ``tasks``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

from castling.tasks.interface import Task, TaskConfig
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
            f"no task {name!r}{did_you_mean(name, _CONFIGS)} known: {', '.join(list_tasks())}"
        )
    return _CONFIGS[name]


def task_class(config: TaskConfig) -> type[Task]:
    """The task class registered for a configuration."""
    return _TASKS[type(config)]


def task_to_dict(config: TaskConfig) -> dict[str, Any]:
    """``config`` as plain values for YAML or JSON, ``name`` first."""
    return {"name": config.name, **dataclasses.asdict(config)}
