"""Files that name the classes of masks: their numbers, colours, and what is no class.

Read are ``classes.json`` (names, or objects with name, id and color; or an object from number to
name or back), ``classes.txt`` and ``labels.txt`` (a name in each line, perhaps with its number or
with red, green and blue), ``class_dict.csv`` (name, r, g, b) and CVAT's ``labelmap.txt``
(name:r,g,b::).
"""

from __future__ import annotations

import csv
import json
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from castling.data.errors import DataError
from castling.data.files import FileStore
from castling.data.segmentation.raw_mask import code_of
from castling.utils.labels import IGNORED
from castling.utils.text import printable

#: By preference.
CLASS_FILES = (
    "classes.json",
    "labels.json",
    "class_dict.csv",
    "classes.csv",
    "_classes.csv",
    "labelmap.txt",
    "label_colors.txt",
    "classes.txt",
    "class_names.txt",
    "labels.txt",
)
_UNREADABLE = (ValueError, RecursionError, TypeError, LookupError, AttributeError, csv.Error)
#: In lower case: names by which files say that pixels are of no class.
NO_CLASS = ("void", "ignore", "ignored", "unlabeled", "unlabelled")


@dataclass(frozen=True)
class NamedClass:
    """One entry of such a file.

    Attributes:
        name: of the class.
        value: its number in masks; None: its place in the file.
        colour: its code; None where there is none.
    """

    name: str
    value: int | None = None
    colour: int | None = None

    @property
    def is_class(self) -> bool:
        """Whether it is one, and no name for what is left out."""
        return self.name.strip().lower() not in NO_CLASS and self.value != IGNORED


@dataclass(frozen=True)
class ClassFile:
    """What a file says.

    Attributes:
        entries: in the order of the file.
        ignore: numbers that it says mean no class.
    """

    entries: tuple[NamedClass, ...]
    ignore: tuple[int, ...] = ()


def find_class_file(files: Sequence[str]) -> str | None:
    """The file that names classes: the highest, of several the one of the most usual name."""
    found = [file for file in files if posixpath.basename(file).lower() in CLASS_FILES]
    return min(
        found,
        key=lambda file: (
            file.count("/"),
            CLASS_FILES.index(posixpath.basename(file).lower()),
            file,
        ),
        default=None,
    )


def read_class_file(store: FileStore, file: str) -> ClassFile:
    """Read one of ``CLASS_FILES``.

    Raises:
        DataError: it names no class, or names, numbers or colours occur twice.
    """
    where = store.describe(file)
    with store.open(file) as stream:
        text = stream.read().decode("utf-8-sig", "replace")
    ending = file.rpartition(".")[2].lower()
    try:
        found = {"json": _from_json, "csv": _from_csv}.get(ending, _from_lines)(text)
    except _UNREADABLE as error:
        raise DataError(
            f"{where} cannot be read as names of classes ({error}); write a name in each line of "
            "classes.txt, or name,r,g,b in class_dict.csv, or give source.classes"
        ) from error
    _check(found, where)
    return found


def _check(found: ClassFile, where: str) -> None:
    if not any(entry.is_class for entry in found.entries):
        raise DataError(f"{where} names no classes")
    stated = [entry.value is not None for entry in found.entries]
    if any(stated) and not all(stated):
        raise DataError(f"{where} gives numbers to some classes only; give every class its number")
    stated_values: tuple[tuple[str, list[Any]], ...] = (
        ("name", [entry.name for entry in found.entries if entry.is_class]),
        ("number", [entry.value for entry in found.entries if entry.value is not None]),
        ("colour", [entry.colour for entry in found.entries if entry.colour is not None]),
    )
    for what, values in stated_values:
        twice = sorted({str(each) for each in values if values.count(each) > 1})
        if twice:
            raise DataError(f"{where} has the {what} {printable(twice[0])} twice")
    bad = [
        entry.name
        for entry in found.entries
        if not entry.name or printable(entry.name) != entry.name
    ]
    if bad:
        raise DataError(f"{where} has a class whose name is {printable(bad[0])!r}")


def _from_json(text: str) -> ClassFile:
    content = json.loads(text)
    ignore: tuple[int, ...] = ()
    if isinstance(content, dict):
        for key in ("ignore_index", "ignore"):
            value = content.get(key)
            if value is not None and not isinstance(value, str):
                ignore += tuple(map(_number, value if isinstance(value, list) else [value]))
        inner = next(
            (content[k] for k in ("classes", "categories", "labels") if k in content), None
        )
        content = content if inner is None else inner
    if isinstance(content, dict):
        return ClassFile(tuple(_from_item(*item) for item in content.items()), ignore)
    if not isinstance(content, list):
        raise ValueError("it holds neither a list nor an object")
    return ClassFile(tuple(map(_from_entry, content)), ignore)


def _from_item(key: str, value: Any) -> NamedClass:
    """``"0": "sky"``, ``"sky": 0`` or ``"sky": [r, g, b]``."""
    if isinstance(value, str):
        return NamedClass(value, _number(int(key)))
    if isinstance(value, list):
        return NamedClass(key, None, _colour(value))
    return NamedClass(key, _number(value))


def _from_entry(entry: Any) -> NamedClass:
    if isinstance(entry, str):
        return NamedClass(entry)
    name = entry["name"]
    if not isinstance(name, str):
        raise ValueError(f"the name {name!r} is no text")
    value = next((entry[key] for key in ("id", "value", "index") if key in entry), None)
    colour = next((entry[key] for key in ("color", "colour") if key in entry), None)
    return NamedClass(
        name,
        None if value is None else _number(value),
        None if colour is None else _colour(colour),
    )


def _from_csv(text: str) -> ClassFile:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines())]
    rows = [row for row in rows if any(row)]
    if rows and not any(cell.isdecimal() for cell in rows[0]):  # a header
        rows = rows[1:]
    return ClassFile(tuple(map(_from_words, rows)))


def _from_lines(text: str) -> ClassFile:
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    for form in _LINES:
        found = [re.fullmatch(form, line) for line in lines]
        if lines and all(found):
            groups = [match.groupdict() for match in found if match is not None]
            return ClassFile(
                tuple(
                    _from_words([each["name"], *re.findall(r"\d+", each["numbers"])])
                    for each in groups
                )
            )
    return ClassFile(tuple(map(NamedClass, lines)))


#: Lines with numbers: CVAT's, a colour before or behind the name, a number before it. They count
#: where all lines have them: the 2 of "lane 2" is part of a name.
_LINES = (
    r"(?P<name>[^:]+):(?P<numbers>\d+,\d+,\d+):[^:]*:[^:]*",
    r"(?P<numbers>\d+[\s,]+\d+[\s,]+\d+)[\s,:]+(?P<name>.*\D.*)",
    r"(?P<name>.*\D.*?)[\s,:]+(?P<numbers>\d+[\s,]+\d+[\s,]+\d+)",
    r"(?P<numbers>\d+)[\s,:]+(?P<name>.*\D.*)",
)


def _from_words(words: Sequence[str]) -> NamedClass:
    """A name with its number, with red, green and blue, or with all of them in this order."""
    numbers = [int(word) for word in words if word.isdecimal()]
    name = " ".join(word for word in words if not word.isdecimal()).strip()
    if len(numbers) not in (0, 1, 3, 4):
        raise ValueError(f"{' '.join(words)[:40]!r} is neither a name, nor one with r, g and b")
    return NamedClass(
        name,
        _number(numbers[0]) if len(numbers) in (1, 4) else None,
        _colour(numbers[-3:]) if len(numbers) >= 3 else None,
    )


def _number(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 16:
        raise ValueError(f"{value!r} is no number of a class")
    return value


def _colour(value: Any) -> int:
    if (
        not isinstance(value, list)
        or len(value) != 3
        or not all(type(part) is int and 0 <= part <= 255 for part in value)
    ):
        raise ValueError(f"{value!r} is no colour")
    return code_of((value[0], value[1], value[2]))
