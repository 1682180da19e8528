"""The argument parser of all verbs: positional arguments anywhere, the nearest flag suggested."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentParser

from castling.utils.text import did_you_mean, nearest, suggestion

#: Phrases of argparse that come before the arguments it does not know.
_UNKNOWN = re.compile(r"^unrecognized arguments: (.*)$", re.IGNORECASE | re.DOTALL)
_CHOICE = re.compile(r"^argument (\S+): invalid choice: '(.*?)' \(choose from (.*)\)$")
_LITERAL = re.compile(r"Expected an? typing\.Literal\[(.*?)\]\. Got value: (.*)$", re.DOTALL)


class Parser(ArgumentParser):
    """jsonargparse's parser with two differences.

    Positional arguments may follow options (``export MODEL --size 33 out.onnx``), which argparse
    refuses for optional ones; and an error about a flag or a choice names the nearest one.
    """

    #: Flags that are read before this parser sees the arguments; suggested with its own.
    read_before: tuple[str, ...] = ()

    def parse_args(self, args: Any = None, namespace: Any = None, **kwargs: Any) -> Any:
        """As jsonargparse's; positional arguments may stand anywhere."""
        if args is not None:
            args = self._positionals_first(args)
        return super().parse_args(args, namespace, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """As jsonargparse's, with the nearest name."""
        super().error(self._suggested(message), ex)
        raise AssertionError("jsonargparse's error() does not return")

    def flags(self) -> list[str]:
        """All long flags but the hidden ones and those that append to a list (``--name+``)."""
        own = self._option_string_actions.items()
        shown = [flag for flag, action in own if action.help != argparse.SUPPRESS]
        return [
            *(flag for flag in shown if flag.startswith("--") and not flag.endswith("+")),
            *self.read_before,
        ]

    def _suggested(self, message: str) -> str:
        if found := _UNKNOWN.match(message):
            words = found[1].split()
            flags = [word.split("=")[0] for word in words if word.startswith("--")]
            if flags:
                near = near_flags(flags[0], self.flags())
                return f"there is no option {flags[0]}{suggestion(near)}"
            return f"cannot use {' '.join(words)}: too many arguments"
        if found := _CHOICE.match(message):
            known = re.findall(r"'([^']*)'", found[3]) or found[3].split(", ")
            return (
                f"{found[1]}: there is no {found[2]!r}; one of {', '.join(known)}"
                f"{did_you_mean(found[2], known)}"
            )
        if found := _LITERAL.search(message):
            known = re.findall(r"'([^']*)'", found[1])
            return (
                f"{message[: found.start()]}there is no {found[2].strip()!r}; one of "
                f"{', '.join(known)}{did_you_mean(found[2].strip(), known)}"
            )
        return message

    def _positionals_first(self, arguments: Sequence[str]) -> list[str]:
        """The same arguments, positional ones first; what follows ``--`` is positional."""
        positional: list[str] = []
        options: list[str] = []
        rest = list(arguments)
        while rest:
            word = rest.pop(0)
            if word == "--":
                positional += rest
                break
            if not word.startswith("-") or word == "-" or _is_number(word):
                positional.append(word)
                continue
            options.append(word)
            action = self._option_string_actions.get(word.split("=")[0])
            if action is None or "=" in word:
                # Of an unknown option the next word may be its value: leave them together.
                if action is None and "=" not in word and rest and not rest[0].startswith("-"):
                    options.append(rest.pop(0))
                continue
            for _ in range(_most_values(action)):
                if not rest or (rest[0].startswith("-") and not _is_number(rest[0])):
                    break
                options.append(rest.pop(0))
        return [*positional, *options]


def near_flags(flag: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The flags nearest to a misspelt one: by the last part of a dotted name, then by spelling.

    ``--lr`` is ``--optim.lr``; ``--epoch`` is ``--epochs``; ``--optim.lrr`` is ``--optim.lr``.
    """
    ends: dict[str, list[str]] = {}
    for each in known:
        ends.setdefault(each.lstrip("-").rpartition(".")[2], []).append(each)
    wanted = flag.lstrip("-").replace("-", "_")
    same = ends.get(wanted.rpartition(".")[2], [])
    if 0 < len(same) <= count:
        return same
    whole = nearest(f"--{wanted}", [each for group in ends.values() for each in group], count)
    if "." in wanted:
        return whole
    near = [each for end in nearest(wanted, ends, count) for each in ends[end]]
    return (near or whole)[:count]


def _most_values(action: argparse.Action) -> int:
    """How many values an option takes at most."""
    if action.nargs is None:
        return 1
    if isinstance(action.nargs, int):
        return action.nargs
    return 1 if action.nargs == "?" else 10**9


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
