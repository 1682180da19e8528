"""From the numbers or colours of a mask file to labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from castling.data.segmentation.raw_mask import RawMask, code_of, colour_of
from castling.utils.labels import IGNORED

#: Label of a number or colour that means nothing.
UNKNOWN = -1
_VALUES = 1 << 16

Codes = NDArray[np.uint8] | NDArray[np.int32]
#: Ids of the segments of one mask, sorted, and the label of each.
Segments = tuple[NDArray[np.int32], NDArray[np.uint8]]


@dataclass(frozen=True)
class Encoding:
    """What numbers and colours mean.

    Attributes:
        values: label of each number; ``IGNORED`` for no class.
        colours: label of each colour, as :func:`castling.data.segmentation.raw_mask.code_of` gives
            it; empty where masks of colours mean nothing.
        colours_first: whether numbers stand for colours too: of the palette, or greys.
    """

    values: Mapping[int, int] = field(default_factory=dict)
    colours: Mapping[int, int] = field(default_factory=dict)
    colours_first: bool = False

    @cached_property
    def _by_value(self) -> NDArray[np.int16]:
        table = np.full(_VALUES, UNKNOWN, dtype=np.int16)
        for value, label in {**self.values, IGNORED: IGNORED}.items():
            if 0 <= value < _VALUES:
                table[value] = label
        return table

    @cached_property
    def _by_colour(self) -> tuple[NDArray[np.int32], NDArray[np.int16]]:
        pairs = sorted(self.colours.items())
        return (
            np.array([code for code, _ in pairs], dtype=np.int32),
            np.array([label for _, label in pairs], dtype=np.int16),
        )

    def read(self, raw: RawMask) -> tuple[Codes, bool]:
        """The codes of a mask that count, and whether they are colours."""
        if raw.colour or not self.colours_first or raw.wide:
            return raw.codes, raw.colour
        greys = np.arange(256, dtype=np.int32) * 0x010101
        if raw.palette is not None:
            greys[:] = _NOWHERE
            red, green, blue = raw.palette.astype(np.int32).T
            greys[: len(raw.palette)] = red << 16 | green << 8 | blue
        return greys[raw.codes], True

    def labels(
        self, codes: Codes, colour: bool, segments: Segments | None = None
    ) -> NDArray[np.int16]:
        """The label of each code, ``UNKNOWN`` for those without meaning.

        Args:
            codes: of any shape.
            colour: whether they are colours.
            segments: of this mask alone; they come in place of colours.
        """
        if not colour:
            if codes.dtype == np.uint8:
                return self._by_value[codes]
            within = (codes >= 0) & (codes < _VALUES)
            return np.where(within, self._by_value[np.where(within, codes, 0)], np.int16(UNKNOWN))
        known, labels = self._by_colour if segments is None else segments
        if not len(known):
            return np.full(codes.shape, UNKNOWN, dtype=np.int16)
        place = np.searchsorted(known, codes).clip(max=len(known) - 1)
        return np.where(known[place] == codes, labels[place].astype(np.int16), np.int16(UNKNOWN))

    def colour_table(self, classes: int) -> tuple[tuple[int, int, int], ...]:
        """A colour of each class; empty where one has none."""
        first: dict[int, int] = {}
        for code, label in self.colours.items():
            first.setdefault(label, code)
        known = all(label in first for label in range(classes))
        return tuple(colour_of(first[label]) for label in range(classes)) if known else ()

    def palette_table(self, palette: NDArray[np.uint8], classes: int) -> tuple[tuple, ...]:
        """The colour of each class in a palette (n, 3); empty where a class lies beyond it."""
        found: dict[int, tuple[int, int, int]] = {}
        for value, label in self.values.items():
            if label not in found and 0 <= value < len(palette):
                red, green, blue = palette[value].tolist()
                found[label] = (red, green, blue)
        known = all(label in found for label in range(classes))
        return tuple(found[label] for label in range(classes)) if known else ()


_NOWHERE = -1  # the colour of a number beyond its palette


def parse_colour(text: str) -> int:
    """The code of a colour written as ``r,g,b`` or ``#rrggbb``.

    Raises:
        ValueError: it is neither.
    """
    try:
        if text.strip().startswith("#"):
            parts = list(bytes.fromhex(text.strip()[1:]))
        else:
            parts = [int(part) for part in text.replace(",", " ").split()]
    except ValueError:
        parts = []
    if len(parts) != 3 or not all(0 <= part <= 255 for part in parts):
        raise ValueError(f"{text!r} is no colour; write it as 128,64,128 or #804080")
    return code_of((parts[0], parts[1], parts[2]))
