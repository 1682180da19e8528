"""Recipes to and from YAML, dictionaries and command-line flags."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace

from castling.train.recipe import Recipe

#: sections that say where a run happens and what it writes, not what it computes
_FREE_SECTIONS = ("hardware", "save")


def recipe_parser(**kwargs: Any) -> ArgumentParser:
    """A parser with ``--config`` and one flag for every field of a recipe.

    Args:
        **kwargs: as of jsonargparse.ArgumentParser.
    """
    kwargs.setdefault("allow_abbrev", False)
    kwargs.setdefault("usage", "%(prog)s [--config FILE] [--SECTION.OPTION VALUE ...]")
    parser = ArgumentParser(**kwargs)
    parser.add_argument("--config", action="config", help="a recipe file (YAML)")
    parser.add_class_arguments(Recipe)
    return parser


def recipe_from_namespace(parser: ArgumentParser, values: Namespace) -> Recipe:
    """The recipe in what ``parser`` has parsed; other arguments of the parser are ignored."""
    names = [field.name for field in dataclasses.fields(Recipe)]
    built = parser.instantiate_classes(values)
    return Recipe(**{name: built[name] for name in names})


def parse_recipe(arguments: Sequence[str]) -> Recipe:
    """A recipe from flags such as ``["--config", "recipes/digits.yaml", "--optim.lr", "1e-3"]``.

    Raises:
        ValueError: an unknown key, or a value of the wrong type; the message names it.
    """
    parser = recipe_parser(exit_on_error=False)
    try:
        return recipe_from_namespace(parser, parser.parse_args(list(arguments)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"recipe: {error}") from error


def load_recipe(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a YAML file, with flags such as ``["--epochs", "5"]`` laid over it.

    Raises:
        FileNotFoundError: no such file.
        ValueError: an unknown key, or a value of the wrong type.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such recipe file: {path}")
    return parse_recipe(["--config", str(path), *overrides])


def recipe_to_dict(recipe: Recipe) -> dict[str, Any]:
    """Plain values, as they are written to YAML."""
    return _plain(dataclasses.asdict(recipe))


def recipe_from_dict(values: dict[str, Any]) -> Recipe:
    """The inverse of :func:`recipe_to_dict`; what is left out takes its default.

    Raises:
        ValueError: an unknown key, or a value of the wrong type.
    """
    parser = recipe_parser(exit_on_error=False)
    try:
        return recipe_from_namespace(parser, parser.parse_object(values))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ValueError(f"recipe: {error}") from error


def recipe_to_yaml(recipe: Recipe) -> str:
    """The whole recipe as YAML."""
    return yaml.safe_dump(recipe_to_dict(recipe), sort_keys=False, allow_unicode=True)


def recipe_differences(old: Recipe, new: Recipe) -> list[str]:
    """What would make ``new`` compute something else than ``old``, one line a field.

    Devices, precision, number of workers and what is written may differ without a line.
    """
    before, after = _flat(recipe_to_dict(old)), _flat(recipe_to_dict(new))
    ignored = {"data.workers"}
    return [
        f"{key}: {before.get(key)!r} → {after.get(key)!r}"
        for key in sorted(set(before) | set(after))
        if before.get(key) != after.get(key)
        and key.split(".")[0] not in _FREE_SECTIONS
        and key not in ignored
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
