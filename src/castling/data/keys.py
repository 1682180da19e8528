"""What identifies an image of a source of files, whatever other images lie beside it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import BinaryIO, Literal

import numpy as np

from castling.data.errors import DataError
from castling.data.registry import AnnotatedSource, FileSource
from castling.data.verify import visit_all
from castling.utils.randomness import Keys

_BYTES = 8  # two of a million files have one digest with a probability of 3·10⁻⁸


def content_digest(stream: BinaryIO) -> str:
    """BLAKE2b of all bytes, 64 bits as 16 hexadecimal digits (RFC 7693)."""
    digest = hashlib.blake2b(digest_size=_BYTES)
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


class ImageKeys:
    """Keys of the images of a source, read when they are asked for and kept.

    Args:
        source: files.
        by: ``content`` digests the bytes of every file, ``path`` its name.
    """

    def __init__(self, source: FileSource, by: Literal["content", "path"]) -> None:
        self.source, self.by = source, by
        self._numbers = {
            split: np.zeros(count, dtype=np.uint64) for split, count in source.info.splits.items()
        }
        self._known = {
            split: np.zeros(count, dtype=bool) for split, count in source.info.splits.items()
        }

    def numbers(self, split: str, indices: Sequence[int] | None = None) -> Keys:
        """(n,) keys of images of a split of the source, as integers.

        A file that cannot be read gets the key of its name: naming it is left to the check of all
        images.

        Args:
            split: of the source.
            indices: positions; None for all.
        """
        numbers, known = self._numbers[split], self._known[split]
        wanted = np.arange(len(known)) if indices is None else np.asarray(indices, dtype=np.int64)
        unknown = wanted[~known[wanted]]

        def read(place: int) -> None:
            index = int(unknown[place])
            numbers[index] = int(self._read(split, index), 16)
            known[index] = True

        visit_all(len(unknown), read)
        return numbers[wanted]

    def of(self, split: str, indices: Sequence[int] | None = None) -> list[str]:
        """The same keys as 16 hexadecimal digits each."""
        return [f"{number:016x}" for number in self.numbers(split, indices).tolist()]

    def _read(self, split: str, index: int) -> str:
        if self.by == "content":
            with contextlib.suppress(DataError):
                return self.source.content(split, index)
        name = self.source.path(split, index).encode()
        return hashlib.blake2b(name, digest_size=_BYTES).hexdigest()


def annotations_of(source: AnnotatedSource, split: str, indices: Sequence[int]) -> list[str]:
    """Digests of the annotations of images, read on several threads; empty for unreadable ones."""
    found = [""] * len(indices)

    def read(place: int) -> None:
        found[place] = source.annotation(split, int(indices[place]))

    visit_all(len(indices), read)
    return found
