"""Annotation files of one image each, read on several threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.verify import visit_all

ReadT = TypeVar("ReadT")


def read_each(
    names: Sequence[str], read: Callable[[str, Faults], ReadT | None], faults: Faults
) -> dict[str, ReadT]:
    """What every file holds, by name, in order.

    Args:
        names: of the files.
        read: takes a name, and where to put its faults; None for a file of which nothing is left.
        faults: takes those of all files, in order.
    """
    found: dict[int, tuple[ReadT | None, Faults]] = {}

    def visit(index: int) -> None:
        own = Faults()
        value = None
        try:
            value = read(names[index], own)
        except DataError as error:
            own.add("not_whole", str(error))
        found[index] = value, own

    visit_all(len(names), visit)
    values = {}
    for index, name in enumerate(names):
        value, own = found[index]
        faults.take(own)
        if value is not None:
            values[name] = value
    return values
