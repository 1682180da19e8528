"""Wording shared by error messages."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable, Sequence

#: A part of a name of at least so many letters is taken for the name.
_PART = 4


def first_line(error: BaseException | None) -> str:
    """The first line of an error that is not empty; its ``repr`` where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names nearest to a misspelt or shortened one, the nearest first; often none."""
    wanted = name.lower()
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(wanted, by_lower, n=count, cutoff=0.6)
    if len(wanted) >= _PART:
        longer = (each for each in by_lower if wanted in each)
        close = list(dict.fromkeys([*sorted(longer, key=len)[:count], *close]))
    return [by_lower[each] for each in close[:count]]


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """``"; did you mean a, b?"`` for the names nearest to a misspelt one, or an empty string."""
    return suggestion(nearest(name, known, count))


def suggestion(names: Sequence[str]) -> str:
    """``"; did you mean a, b?"``, or an empty string without names."""
    return f"; did you mean {', '.join(names)}?" if names else ""


def printable(name: str) -> str:
    r"""A file's name that every terminal and every UTF-8 file can hold.

    Bytes that are not UTF-8 (which Python keeps as lone surrogates) and control characters are
    written as escapes: the bytes ``63 e9 74`` become ``c\xe9t``. Other names stay as they are.
    """
    if name.isprintable():  # the usual case; it is False for some harmless characters too
        return name
    return "".join(
        f"\\x{ord(letter) - 0xDC00:02x}"
        if 0xDC80 <= ord(letter) <= 0xDCFF
        else ascii(letter)[1:-1]
        if unicodedata.category(letter) in ("Cc", "Cs")
        else letter
        for letter in name
    )


def percent(share: float, digits: int = 1) -> str:
    """A share in [0, 1] as every table, page and line of castling writes it: ``22.2 %``."""
    return f"{100 * share:.{digits}f} %"


def few(names: Iterable[str], count: int = 5) -> str:
    """The first names, and how many there are where some are left out."""
    listed = list(names)
    text = ", ".join(listed[:count])
    return f"{text}, … ({len(listed)} in all)" if len(listed) > count else text
