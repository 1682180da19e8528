"""What all masks of a split hold, found in one pass: sizes, numbers and colours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from castling.data.errors import DataError
from castling.data.files import FileStore
from castling.data.segmentation.encoding import Encoding, Segments
from castling.data.segmentation.raw_mask import RawMask, code_counts, read_mask
from castling.data.verify import visit_all
from castling.utils.labels import IGNORED

#: Numbers and colours that are kept of one mask; a photograph in place of a mask has more, of which
#: no table can know them all.
_MOST_CODES = 4096
_NO_PIXELS = np.empty((0, 0), dtype=np.uint8)


@dataclass(frozen=True)
class MaskFacts:
    """What one mask holds.

    Attributes:
        size: (height, width).
        codes: (n,) numbers or colours that occur.
        counts: (n,) pixels of each.
        raw: the mask without its pixels.
        shown: (n, 3) colours of the numbers in its palette; None where it has none.
    """

    size: tuple[int, int]
    codes: NDArray[np.int32]
    counts: NDArray[np.int64]
    raw: RawMask
    shown: NDArray[np.uint8] | None = None

    def label_counts(
        self, encoding: Encoding, segments: Segments | None
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """(256,) pixels of each label, and the positions in ``codes`` of those without meaning."""
        codes, colour = self.read(encoding)
        labels = encoding.labels(codes, colour, segments)
        known = labels >= 0
        counts = np.bincount(labels[known], self.counts[known], minlength=IGNORED + 1)
        return counts.astype(np.int64), np.flatnonzero(~known)

    def read(self, encoding: Encoding) -> tuple[NDArray[np.int32], bool]:
        """``codes`` as the encoding takes them, and whether they are colours."""
        if self.raw.colour or self.raw.wide:
            return self.codes, self.raw.colour
        numbers = self.codes.astype(np.uint8)
        found, colour = encoding.read(RawMask(numbers, palette=self.raw.palette))
        return found.astype(np.int32), colour


def scan_masks(store: FileStore, files: Sequence[str]) -> list[MaskFacts | str]:
    """Decode every mask once, on several threads.

    Returns:
        The facts of each, or what is wrong with a file that cannot be read.
    """
    found: dict[int, MaskFacts | str] = {}

    def visit(index: int) -> None:
        name = store.describe(files[index])
        try:
            with store.open(files[index]) as stream:
                raw = read_mask(stream, name)
        except DataError as error:
            found[index] = str(error)
            return
        codes, counts = code_counts(raw.codes)
        if len(codes) > _MOST_CODES:
            most = np.sort(np.argsort(-counts, kind="stable")[:_MOST_CODES])
            codes, counts = codes[most], counts[most]
        shown = None
        if raw.palette is not None:
            within = np.zeros((256, 3), dtype=np.uint8)
            within[: len(raw.palette)] = raw.palette[:256]
            shown = within[codes]
        height, width = raw.codes.shape
        bare = RawMask(_NO_PIXELS, raw.colour, raw.palette, raw.see_through, raw.lossy, raw.wide)
        found[index] = MaskFacts((height, width), codes, counts, bare, shown)

    visit_all(len(files), visit)
    return [found[index] for index in range(len(files))]
