"""Colours of classes, for drawings and indexed PNG files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castling.tasks.drawing import Color, class_color
from castling.utils.labels import IGNORED

#: Of pixels without a class.
NO_CLASS: Color = (224, 224, 192)
#: Brightness of neighbouring labels, whose hues differ too.
_BRIGHTNESS = 1.0, 0.8, 0.65


def colour_table(colours: Sequence[Sequence[int]], classes: Sequence[str]) -> NDArray[np.uint8]:
    """(256, 3) colour of each label; ``IGNORED`` has one of its own.

    Args:
        colours: of the data's classes; empty takes bright ones, and black for a background.
        classes: names in the order of the labels.
    """
    table = np.array([_default(label) for label in range(256)], dtype=np.uint8)
    if classes and classes[0].lower() == "background":
        table[0] = 0
    if len(colours):
        table[: len(classes)] = np.array(colours, dtype=np.uint8)
    table[IGNORED] = NO_CLASS
    return table


def _default(label: int) -> list[int]:
    brightness = _BRIGHTNESS[label % len(_BRIGHTNESS)]
    return [round(brightness * part) for part in class_color(label)]
