"""What identifies an image of a source of files, whatever other images lie beside it."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from typing import BinaryIO, Literal

import numpy as np

from castling.data.errors import DataError
from castling.data.registry import FileSource
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
        self._known: dict[tuple[str, int], str] = {}

    def of(self, split: str, indices: Sequence[int] | None = None) -> list[str]:
        """Keys of images of a split of the source, 16 hexadecimal digits each.

        A file that cannot be read gets the key of its name: naming it is left to the check of all
        images.

        Args:
            split: of the source.
            indices: positions; None for all.
        """
        if indices is None:
            indices = range(self.source.info.splits[split])
        wanted = [index for index in indices if (split, index) not in self._known]
        visit_all(len(wanted), lambda place: self._read(split, wanted[place]))
        return [self._known[split, index] for index in indices]

    def numbers(self, split: str) -> Keys:
        """(n,) keys of all images of a split as integers."""
        return np.array([int(key, 16) for key in self.of(split)], dtype=np.uint64)

    def _read(self, split: str, index: int) -> None:
        key = hashlib.blake2b(
            self.source.path(split, index).encode(), digest_size=_BYTES
        ).hexdigest()
        if self.by == "content":
            with contextlib.suppress(DataError):
                key = self.source.content(split, index)
        self._known[split, index] = key
