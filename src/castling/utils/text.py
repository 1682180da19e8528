"""Wording shared by error messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def first_line(error: BaseException | None) -> str:
    """The first line of an error that is not empty; its ``repr`` where there is none."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))


def nearest(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names nearest to a misspelt one, the nearest first; often none."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(name.lower(), by_lower, n=count, cutoff=0.6)
    return [by_lower[key] for key in near]


def did_you_mean(name: str, known: Iterable[str], count: int = 3) -> str:
    """``"; did you mean a, b?"`` for the names nearest to a misspelt one, or an empty string."""
    return suggestion(nearest(name, known, count))


def suggestion(names: Sequence[str]) -> str:
    """``"; did you mean a, b?"``, or an empty string without names."""
    return f"; did you mean {', '.join(names)}?" if names else ""
