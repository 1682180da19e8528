"""What the verbs of the command line share: parsers, sizes, printing."""

from __future__ import annotations

import json
import re
import sys
from argparse import Action
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from castling.profiling.formatting import aligned
from castling.utils.parser import Parser
from castling_launcher import VERBS

if TYPE_CHECKING:
    from castling.data import DataConfig
    from castling.data.registry import SourceConfig


#: Number types of options, as help shows them.
_RANGES = {
    "PositiveInt": "int ≥ 1",
    "NonNegativeInt": "int ≥ 0",
    "PositiveFloat": "float > 0",
    "NonNegativeFloat": "float ≥ 0",
    "ClosedUnitInterval": "in [0, 1]",
    "OpenUnitInterval": "in (0, 1)",
    "RightOpenUnitInterval": "in [0, 1)",
    "LeftOpenUnitInterval": "in (0, 1]",
}


class _HelpFormatter(DefaultHelpFormatter):
    """Shows each default once, none where it is empty, and ranges in place of type names."""

    def format_help(self) -> str:
        """The whole text; docstrings' double backticks are left out."""
        text: str = super().format_help().replace("``", "")
        return re.sub(r"\b(\w+)\b", lambda match: _RANGES.get(match[1], match[1]), text)

    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if "(default: " in text:
            return text
        said: str = super()._get_help_string(action)
        if action.nargs == 0 or action.default in (None, "", []):
            # Within the brackets there may be a type as well.
            said = re.sub(r"(, | \()default: %\(default\)s", r"\1", said)
            said = said.replace(", )", ")").replace(" ()", "")
        return said


def parser_options(verb: str, text: str = "") -> dict[str, Any]:
    """Arguments of a parser.

    Args:
        verb: of the launcher's table, or one of its parts, such as ``"bench ops"``.
        text: what it does; empty takes the table's.
    """
    text = text or VERBS[verb]
    return {
        "prog": f"castling {verb}",
        "description": text[0].upper() + text[1:] + ".",
        "exit_on_error": False,
        "formatter_class": _HelpFormatter,
        "allow_abbrev": False,  # --epoch must not pass for --epochs
    }


def parser_for(verb: str, text: str = "") -> ArgumentParser:
    """A verb's parser with ``--json``; arguments as in :func:`parser_options`."""
    parser = Parser(**parser_options(verb, text))
    add_json(parser)
    return parser


def add_json(parser: ArgumentParser) -> None:
    """Every verb that reports can say it as JSON."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def add_quiet(parser: ArgumentParser) -> None:
    """For verbs that report progress; errors and results are printed all the same."""
    parser.add_argument(
        "--quiet", action="store_true", help="no progress: only the result, warnings and errors"
    )


def add_overwrite(parser: ArgumentParser, what: str = "what is there") -> None:
    """``--overwrite``, for verbs that write files under a name that may be taken."""
    parser.add_argument("--overwrite", action="store_true", help=f"replace {what}")


def check_files(values: Any, *flags: str) -> None:
    """Refuse flags that name a folder where a file is to be written, before any work.

    Raises:
        IsADirectoryError: one does.
    """
    for flag in flags:
        path = getattr(values, flag)
        if path and Path(path).is_dir():
            raise IsADirectoryError(f"--{flag} {path} is a folder: name a file")


def progress_of(values: Any) -> Callable[[str], None]:
    """Where progress goes: to standard error, or nowhere with ``--quiet``."""
    return (lambda text: None) if values.quiet else say


def add_data(parser: ArgumentParser, what: str) -> None:
    """``--data``, for verbs that work on a run's own data unless told otherwise."""
    parser.add_argument(
        "--data",
        help=f"{what}: digits, a folder, a zip, torchvision:NAME, or the source of a recipe: "
        "'{name: masks, path: FOLDER, ignore: [0]}' (default: those of the run)",
    )


def add_task(parser: ArgumentParser) -> None:
    """``--task``, for verbs that may compute with other options than a model's own."""
    parser.add_argument(
        "--task",
        help="options of the task in the place of the model's own, as YAML, such as "
        "'{augment: {scales: [0.75, 1, 1.25], flip: true}}' of a segmenter",
    )


def task_options(values: Any) -> dict[str, Any] | None:
    """What ``--task`` says; ValueError where it is no mapping."""
    return None if values.task is None else _mapping(values.task, "--task")


def _mapping(text: str, option: str) -> dict[str, Any]:
    import yaml

    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{option} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{option} is {text!r}; write options as '{{name: value}}'")
    return found


def add_device(parser: ArgumentParser, what: str = "where it runs") -> None:
    """``--device``, in the words of recipes; see :func:`device_of`."""
    parser.add_argument(
        "--device",
        default="cpu",
        help=f"{what}: auto, cpu, cuda, cuda:1 or mps (default: cpu)",
    )


def device_of(values: Any) -> str:
    """The device that ``--device`` names; ValueError says what there is where it is missing."""
    from castling.utils.devices import read_device

    return str(read_device(values.device, "--device"))


def source_of(text: str, option: str) -> SourceConfig:
    """The source that an option names: a shorthand, or a recipe's ``{name: …}`` as YAML."""
    from castling.data.sources import source_from

    return source_from(_mapping(text, option) if text.lstrip().startswith("{") else text)


def data_of(source: str | None) -> DataConfig | None:
    """The data that ``--data`` names; None without it."""
    from castling.data import DataConfig

    return None if source is None else DataConfig(source=source_of(source, "--data"))


def argument_text(text: str) -> str:
    """What jsonargparse says about a wrong argument, in one line, the flag by its name."""
    text = re.sub(r"Parser key \"(.+?)\":", r"--\1:", text)
    text = re.sub(r"Expected an? <class '(\w+)'>", r"expected \1", text)
    text = " ".join(text.split())
    numbers = re.findall(r"Not of type (\w+):", text)
    flag = re.match(r"--\S+(?=: )", text)
    if not numbers or not flag:
        return text
    from castling.utils.checks import describe_number

    given = re.search(
        r"Given value: (.+)$|(?:with base 10|string to float): '(.+)'$|: (\S+) does not conform",
        text,
    )
    value = next((each for each in given.groups() if each), "") if given else ""
    wanted = " or ".join(dict.fromkeys(describe_number(name) for name in numbers))
    return f"{flag[0]}: must be {wanted}" + (f", got {value}" if value else "")


def class_table(figures: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """Lines of a task's table of classes; see ``Task.class_figures``. None without classes."""
    if not figures:
        return []
    columns = list(next(iter(figures.values())))
    rows = [
        [name, "", *(_figure(column, values[column]) for column in columns)]
        for name, values in figures.items()
    ]
    return ["", *aligned(["class", "", *columns], rows)]


def _figure(column: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.0f}" if column == "images" else f"{value:.1f} %"


def read_size(text: str) -> tuple[int, int]:
    """(height, width) from ``HEIGHTxWIDTH`` or a side; ValueError otherwise."""
    parts: Sequence[str] = text.lower().replace("×", "x").split("x")
    if len(parts) not in (1, 2) or not all(part.isdigit() and int(part) for part in parts):
        raise ValueError(f"{text!r} is not a size: give a side (224) or HEIGHTxWIDTH (224x320)")
    return int(parts[0]), int(parts[-1])


def show(values: Any, value: Any, text: str) -> None:
    """Print a result: ``value`` as JSON where ``values.json`` asks for it, else ``text``."""
    if values.json or text:
        print(json.dumps(value, indent=2, ensure_ascii=False) if values.json else text, flush=True)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)
