"""The command line of recipes: one flag for every option.

A recipe's options depend on its task and on its source of data, which are registered by name. So
the two names are read first, from files and flags, and the parser is built for them:
``castling train --task NAME --help`` shows the options of that task. A task or a source may be
written as its name alone (``task: NAME``, ``--data.source digits``); any other text in place of a
source is the path of a folder or zip file.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from argparse import SUPPRESS
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace

from castling.data import DataConfig, LoaderConfig, SplitConfig
from castling.data.registry import list_sources, source_config_class, source_to_dict
from castling.data.sources import split_shorthand
from castling.tasks import DEFAULT_TASK, list_tasks, task_class, task_config_class
from castling.train.legacy import MOVED, is_old, upgrade
from castling.train.recipe import SCALARS, SECTIONS, Recipe
from castling.utils.checks import check_known
from castling.utils.parser import Parser
from castling.utils.text import did_you_mean
from castling.utils.yaml_files import read_yaml

_USAGE = (
    "%(prog)s [--config FILE] [--task NAME] [--data.source SOURCE] [--SECTION.OPTION VALUE ...]"
)
_EPILOG = (
    f"NAME is one of {', '.join(list_tasks())}. SOURCE is digits, the path of a folder or zip "
    f"file, or torchvision:NAME; --data.source.name takes {', '.join(list_sources())}."
)


def recipe_parser(
    task: str = DEFAULT_TASK.name, source: str = "digits", **kwargs: Any
) -> ArgumentParser:
    """A parser with one flag for every option of a recipe for a task and a kind of source.

    Args:
        task: a registered task.
        source: a registered source.
        **kwargs: as of jsonargparse.ArgumentParser.

    Raises:
        ValueError: no such task or source.
    """
    kwargs.setdefault("allow_abbrev", False)
    kwargs.setdefault("usage", _USAGE)
    kwargs.setdefault("epilog", _EPILOG)
    parser = Parser(**kwargs)
    parser.read_before = ("--data.source", "--data.source.name")
    parser.add_argument("--config", action="config", help="a recipe file (YAML)")
    task_config = task_config_class(task)
    parser.add_class_arguments(task_config, "task")
    parser.add_class_arguments(source_config_class(source), "data.source")
    parser.add_class_arguments(SplitConfig, "data.split")
    parser.add_class_arguments(task_class(task_config()).transform_config, "data.transform")
    parser.add_class_arguments(LoaderConfig, "data.loader")
    defaults = {field.name: field.default for field in dataclasses.fields(Recipe)}
    help_of = _attribute_docs(Recipe)
    for name, kind in SCALARS.items():
        parser.add_argument(f"--{name}", type=kind, default=defaults[name], help=help_of[name])
    for name, config in SECTIONS.items():
        parser.add_class_arguments(config, name)
    _describe_names(parser)
    return parser


def _describe_names(parser: ArgumentParser) -> None:
    """Describe ``--task``, which is read before parsing, and hide the sections' file options.

    jsonargparse offers a file for every section; ``--config`` is the one way to give files.
    """
    for action in parser._actions:
        if "--task" in action.option_strings:
            action.metavar, action.help = "NAME", "what to train for"
        elif action.help == "Path to a configuration file.":
            action.help = SUPPRESS


def parse_flags(
    arguments: Sequence[str],
    *,
    extend: Callable[[ArgumentParser], None] | None = None,
    **kwargs: Any,
) -> tuple[Recipe, Namespace]:
    """A recipe from files and flags, and whatever else was parsed.

    Flags win over files, later files over earlier ones.

    Args:
        arguments: such as ``["--config", "recipes/digits.yaml", "--optim.lr", "1e-3"]``.
        extend: called with the parser, to add arguments that are not the recipe's.
        **kwargs: as of jsonargparse.ArgumentParser.

    Raises:
        FileNotFoundError: no such recipe file.
        ValueError: an unknown key, or a value of the wrong type; the message names it.
    """
    files, flags, chosen = _split_arguments(arguments)
    values: dict[str, Any] = {}
    for path in files:
        values = _merged(values, normalised(read_recipe_values(path)))
    values = _merged(values, chosen)
    task, source = pop_names(values)
    require_known(values, task, source)
    parser = recipe_parser(task, source, **kwargs)
    if extend is not None:
        extend(parser)
    known = parser.parse_object(values) if values else None
    found = parser.parse_args(flags, namespace=known)
    return build_recipe(parser, found), found


def build_recipe(parser: ArgumentParser, values: Namespace) -> Recipe:
    """The recipe of parsed values."""
    built = parser.instantiate_classes(values)
    data = DataConfig(
        source=built.data.source,
        split=built.data.split,
        transform=built.data.transform,
        loader=built.data.loader,
    )
    names = (*SECTIONS, *SCALARS)
    return Recipe(task=built.task, data=data, **{name: built[name] for name in names})


def normalised(values: Mapping[str, Any]) -> dict[str, Any]:
    """Values in the present form, names of task and source written out.

    Raises:
        ValueError: an unknown section, or one that is not a mapping.
    """
    # An empty section says nothing.
    own: dict[str, Any] = {k: copy.deepcopy(v) for k, v in values.items() if v is not None}
    if is_old(own):
        own = upgrade(own)
    known = ("task", "data", *SECTIONS, *SCALARS)
    for name in own:
        if name not in known:
            raise ValueError(f"unknown section {name!r}{did_you_mean(str(name), known)}")
    if isinstance(own.get("task"), str):
        own["task"] = {"name": own["task"]}
    data = own.get("data")
    if isinstance(data, dict):
        data = own["data"] = {k: v for k, v in data.items() if v is not None}
        if isinstance(data.get("source"), str):
            data["source"] = source_to_dict(split_shorthand(data["source"]))
        _require_section(data, "source", "data.source")
    for name in ("task", "data", *SECTIONS):
        _require_section(own, name, name)
    return own


def require_known(values: Mapping[str, Any], task: str, source: str) -> None:
    """Refuse unknown options; jsonargparse drops those whose value is an empty mapping.

    Args:
        values: normalised, without the names of task and source.
        task: a registered task.
        source: a registered source.

    Raises:
        ValueError: an option is unknown; the message names it and the nearest one.
    """
    task_config = task_config_class(task)
    data: dict[str, type] = {
        "source": source_config_class(source),
        "split": SplitConfig,
        "transform": task_class(task_config()).transform_config,
        "loader": LoaderConfig,
    }
    check_known(values.get("data", {}), data, "data")
    sections = {"task": task_config, **SECTIONS}
    for name, config in sections.items():
        _require_fields(values.get(name, {}), config, name)
    for name, config in data.items():
        _require_fields(values.get("data", {}).get(name, {}), config, f"data.{name}")


def _require_fields(values: Any, config: type, section: str) -> None:
    if not isinstance(values, Mapping):
        return
    hints = get_type_hints(config)
    known = [field.name for field in dataclasses.fields(config)]
    check_known(values, dict.fromkeys(known), section)
    for name, value in values.items():
        if dataclasses.is_dataclass(hints[name]):
            _require_fields(value, hints[name], f"{section}.{name}")


def _require_section(values: Mapping[str, Any], name: str, label: str) -> None:
    section = values.get(name, {})
    if not isinstance(section, dict):
        raise ValueError(f"{label} is {section!r}; it must be a mapping of options")
    if not isinstance(section.get("name", ""), str):
        raise ValueError(f"{label}.name is {section['name']!r}; it must be a name")


def pop_names(values: dict[str, Any]) -> tuple[str, str]:
    """Take the names of task and source out of normalised values."""
    task = values.get("task")
    data = values.get("data")
    source = data.get("source") if isinstance(data, dict) else None
    return (
        task.pop("name", DEFAULT_TASK.name) if isinstance(task, dict) else DEFAULT_TASK.name,
        source.pop("name", "digits") if isinstance(source, dict) else "digits",
    )


def _split_arguments(
    arguments: Sequence[str],
) -> tuple[list[str], list[str], dict[str, Any]]:
    """Recipe files, other flags, and the values of the flags that name task and source."""
    files: list[str] = []
    flags: list[str] = []
    chosen: dict[str, Any] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        flag, equals, value = argument.partition("=")
        if flag in MOVED:
            raise ValueError(f"{flag} is {MOVED[flag]} now")
        named = ("--config", "--task", "--task.name", "--data.source")
        if flag not in named and not flag.startswith("--data.source."):
            flags.append(argument)
            continue
        if not equals:
            if not rest:
                raise ValueError(f"{flag} needs a value")
            value = rest.pop(0)
        if flag == "--config":
            files.append(value)
        elif flag.startswith("--task"):
            chosen["task"] = {"name": value}
        elif flag == "--data.source":
            chosen["data"] = {"source": source_to_dict(split_shorthand(value))}
        else:
            # Read here, because the options of a source depend on its name.
            option = flag.removeprefix("--data.source.")
            read = value if option in ("name", "path") else yaml.safe_load(value)
            chosen.setdefault("data", {"source": {}})["source"][option] = read
    return files, flags, chosen


def _merged(first: dict[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """``second`` laid over ``first``; another task or source takes no options of the former."""
    result = dict(first)
    for key, value in second.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            renamed = "name" in value and "name" in old and value["name"] != old["name"]
            replaced = renamed or key in ("kwargs", "head", "attention", "where")
            result[key] = dict(value) if replaced else _merged(old, value)
        else:
            result[key] = copy.deepcopy(value)
    return result


def read_recipe_values(path: str | os.PathLike[str]) -> Mapping[str, Any]:
    """The values of a recipe file as they stand there.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is not valid YAML, too large, or no recipe; it is named.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no such recipe file: {path}")
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not a recipe: it holds no sections such as model: and data:")
    return values


def _attribute_docs(config: type) -> dict[str, str]:
    """The lines of a class's ``Attributes`` section, by name."""
    found: dict[str, str] = {}
    for line in (config.__doc__ or "").split("Attributes:")[-1].splitlines():
        name, colon, text = line.strip().partition(": ")
        if colon:
            found[name] = text.rstrip(".")
    return found
