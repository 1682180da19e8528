"""Recipes to and from YAML and dictionaries."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from jsonargparse import ArgumentError

from castling.data import DataConfig
from castling.data.registry import source_to_dict
from castling.tasks import task_to_dict
from castling.train.recipe import Recipe
from castling.train.recipe_parser import (
    build_recipe,
    normalised,
    parse_flags,
    pop_names,
    recipe_parser,
    require_known,
)

#: sections that say where a run happens and what it writes, not what it computes
_FREE_SECTIONS = ("hardware", "save")
#: options of these sections that do decide what the run's model is
_BINDING = ("save.use",)


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """A recipe from flags such as ``["--config", "recipes/digits.yaml", "--optim.lr", "1e-3"]``.

    Raises:
        FileNotFoundError: no such recipe file.
        ValueError: an unknown key, or a value of the wrong type; the message names it.
    """
    try:
        return parse_flags(arguments, exit_on_error=False)[0]
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"recipe: {error}") from error


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with flags such as ``["--epochs", "5"]`` laid over it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key, or a value of the wrong type.
    """
    return parse_recipe(["--config", str(path), *overrides])


def recipe_from_dict(values: Mapping[str, Any]) -> Recipe:
    """The inverse of :func:`recipe_to_dict`; what is left out takes its default.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    try:
        own = normalised(values)
        task, source = pop_names(own)
        require_known(own, task, source)
        parser = recipe_parser(task, source, exit_on_error=False)
        return build_recipe(parser, parser.parse_object(own))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"recipe: {error}") from error


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, as they are written to YAML."""
    values = dataclasses.asdict(recipe)
    values["task"] = task_to_dict(recipe.task)
    values["data"]["source"] = source_to_dict(recipe.data.source)
    return _plain(values)


def recipe_to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """What would make ``new`` compute something else than ``old``, one line a field.

    Devices, precision, number of workers and what is written may differ without a line; which
    weights are the run's model may not.
    """
    before, after = _flat(recipe_to_dict(old)), _flat(recipe_to_dict(new))
    ignored = {"data.loader.workers"}
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(set(before) | set(after))
        if before.get(key) != after.get(key)
        and (key.split(".")[0] not in _FREE_SECTIONS or key in _BINDING)
        and key not in ignored
    ]


def recipe_changes(recipe: Recipe) -> dict[str, tuple[Any, Any]]:
    """Options that are not at their defaults, by their names as flags: (value, default).

    The defaults are those of the recipe's own task and kind of source; an option that has none,
    such as a folder's path, has the default None. Model and source are always named.
    """
    source = type(recipe.data.source)
    defaults = Recipe(
        task=type(recipe.task)(),
        data=DataConfig(transform=type(recipe.data.transform)()),
    )
    before, after = _flat(recipe_to_dict(defaults)), _flat(recipe_to_dict(recipe))
    before = {key: value for key, value in before.items() if not key.startswith("data.source.")}
    for field in dataclasses.fields(source):
        if field.default is not dataclasses.MISSING:
            before[f"data.source.{field.name}"] = _plain(field.default)
    named = ("model.name", "data.source.name")
    return {
        key: (value, before.get(key))
        for key, value in after.items()
        if key in named or value != before.get(key)
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)  # the parser's numbers of a range are no plain ones, for YAML
    return value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
