"""Strides of the maps that a head takes, as its options give them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

_NUMBERS = {2: "two", 3: "three"}


def check_strides(strides: Sequence[int], least: int) -> None:
    """Raise ValueError unless there are enough strides, each twice the one before.

    Args:
        strides: ``model.head.strides``.
        least: how many at least, 2 or 3.
    """
    doubled = all(2 * fine == coarse for fine, coarse in itertools.pairwise(strides))
    if len(strides) < least or not doubled:
        raise ValueError(
            f"model.head.strides is {list(strides)}; it must be {_NUMBERS[least]} strides or more, "
            "each twice the one before"
        )
