"""Names, numbers and colours of classes, from options, a file beside the masks, or the masks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from castling.data.segmentation.class_files import NO_CLASS, ClassFile, NamedClass
from castling.data.segmentation.encoding import Encoding, parse_colour
from castling.data.segmentation.raw_mask import colour_of
from castling.utils.labels import IGNORED


@dataclass(frozen=True)
class Numbering:
    """What of the numbers in masks is no class, and where counting begins.

    Attributes:
        ignore: numbers of no class, beside 255.
        reduce_zero_label: whether 0 is no class and others count from 1.
    """

    ignore: tuple[int, ...] = ()
    reduce_zero_label: bool = False

    @property
    def first(self) -> int:
        """The number of the first class."""
        return int(self.reduce_zero_label)

    @property
    def no_class(self) -> tuple[int, ...]:
        """All numbers of no class but 255."""
        return (*((0,) if self.reduce_zero_label else ()), *self.ignore)


def check_classes(names: Sequence[str], where: str) -> None:
    """Refuse names that occur twice, and more classes than labels.

    Raises:
        ValueError: so it is.
    """
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ValueError(f"{where} names {twice[0]} twice; give every class a name of its own")
    if len(names) > IGNORED:
        raise ValueError(
            f"{where} names {len(names)} classes; labels are bytes and 255 is no class, so there "
            f"may be {IGNORED} at most: merge some"
        )


def numbered_encoding(
    count: int, numbering: Numbering, colours: Mapping[int, int] | None = None
) -> Encoding:
    """Classes numbered in a row."""
    values = {numbering.first + label: label for label in range(count)}
    return Encoding({**values, **dict.fromkeys(numbering.no_class, IGNORED)}, colours or {})


def from_file(found: ClassFile, numbering: Numbering) -> tuple[list[str], Encoding, list[str]]:
    """Classes as a file beside the masks has them.

    Numbers that the file states count as they are, except that with ``reduce_zero_label`` those
    that begin at 0 are one less than in the masks.

    Returns:
        Names in the order of the numbers; what numbers and colours mean; and names in the file
        that are taken for no class.
    """
    entries = list(found.entries)
    if all(entry.value is not None for entry in entries):
        entries.sort(key=lambda entry: entry.value or 0)
        lowest = min(entry.value or 0 for entry in entries)
        shift = 1 if numbering.reduce_zero_label and lowest == 0 else 0
    else:
        entries = [NamedClass(e.name, place, e.colour) for place, e in enumerate(entries)]
        shift = numbering.first
    values = dict.fromkeys((*numbering.no_class, *found.ignore), IGNORED)
    colours: dict[int, int] = {}
    names: list[str] = []
    for entry in entries:
        label = IGNORED
        number = (entry.value or 0) + (shift if entry.value != IGNORED else 0)
        if entry.is_class:
            label = len(names)
            names.append(entry.name)
        values.setdefault(number, label)
        if entry.colour is not None:
            colours[entry.colour] = label
    left_out = [entry.name for entry in entries if not entry.is_class]
    return names, Encoding(values, colours, _greys_alone(colours)), left_out


def from_colours(
    table: Mapping[str, str], classes: Sequence[str], where: str
) -> tuple[list[str], Encoding]:
    """Classes by a table from ``r,g,b`` to name; several colours may be one class.

    Args:
        table: as it was given. Names such as void are no classes, unless ``classes`` has them.
        classes: names in the order of the labels; empty: in the order of the table.
        where: what errors call the table.

    Raises:
        ValueError: a colour is none, or a name is not among the classes.
    """
    names = list(classes) or list(_names_of(table.values()))
    labels = {name: label for label, name in enumerate(names)}
    colours: dict[int, int] = {}
    for text, name in table.items():
        try:
            code = parse_colour(text)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        if name not in labels and name.strip().lower() not in NO_CLASS:
            raise ValueError(f"{where} names {name}, which is not among the classes")
        if code in colours:
            raise ValueError(f"{where} has the colour {text} twice")
        colours[code] = labels.get(name, IGNORED)
    return names, Encoding({}, colours, colours_first=True)


def _names_of(names: Iterable[str]) -> dict[str, None]:
    return dict.fromkeys(name for name in names if name.strip().lower() not in NO_CLASS)


def _greys_alone(colours: Mapping[int, int]) -> bool:
    """Whether a table of colours is one of greys, which masks of one channel hold as numbers."""
    return bool(colours) and all(len({*colour_of(code)}) == 1 for code in colours)
