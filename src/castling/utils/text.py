"""Wording shared by error messages."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Iterable


def first_line(error: BaseException | None) -> str:
    """The first line of an error that is not empty; its ``repr`` where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """``"; did you mean a, b?"`` for the names nearest to a misspelt one, or an empty string."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.6)
    return f"; did you mean {', '.join(by_lower[key] for key in near)}?" if near else ""


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


def few(names: Iterable[str], count: int = 5) -> str:
    """The first names, and how many there are where some are left out."""
    listed = list(names)
    text = ", ".join(listed[:count])
    return f"{text}, … ({len(listed)} in all)" if len(listed) > count else text
