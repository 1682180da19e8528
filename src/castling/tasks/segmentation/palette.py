"""Colours of classes, for drawings and indexed PNG files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castling.utils.labels import IGNORED

#: Of pixels without a class.
NO_CLASS = (224, 224, 192)


def colour_table(colours: Sequence[Sequence[int]], classes: int) -> NDArray[np.uint8]:
    """(256, 3) colour of each label; ``IGNORED`` has one of its own.

    Args:
        colours: of the data's classes; empty takes those of :func:`default_colours`.
        classes: K.
    """
    table = default_colours()
    if len(colours):
        table[:classes] = np.array(colours, dtype=np.uint8)
    table[IGNORED] = NO_CLASS
    return table


def default_colours() -> NDArray[np.uint8]:
    """(256, 3) colours of Pascal VOC: label 0 is black, neighbours differ.

    The bits of a label go in turn to red, green and blue, from each colour's highest bit down.
    """
    labels = np.arange(256)
    table = np.zeros((256, 3), dtype=np.uint8)
    for bit in range(8):
        value = (labels >> bit & 1) << (7 - bit // 3)
        table[:, bit % 3] |= value.astype(np.uint8)
    return table
