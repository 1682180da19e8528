"""How many pixels of each class a split has, by which classes can be weighted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from castling.data.registry import Source
from castling.data.verify import Damage
from castling.utils.labels import IGNORED


@runtime_checkable
class CountingSource(Source, Protocol):
    """A source that has counted the pixels of its masks."""

    def pixel_counts(
        self, split: str, positions: Sequence[int] | NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """(K,) pixels of each class; see :func:`pixel_counts`."""
        ...


def pixel_counts(
    source: Source, split: str, positions: Sequence[int] | NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """(K,) pixels of each class over the masks of a split; ignored pixels are not counted.

    Args:
        source: of segmentation; one that knows its counts is asked, otherwise every sample is read.
        split: of the source.
        positions: of the images that count; None for all.

    Raises:
        DataError: masks are damaged; the first are named.
    """
    if isinstance(source, CountingSource):
        return source.pixel_counts(split, positions)
    places = range(source.info.splits[split]) if positions is None else [int(p) for p in positions]
    classes = len(source.info.classes)
    counts = np.zeros((len(places), classes), dtype=np.int64)

    def count(row: int) -> None:
        mask = source.sample(split, places[row]).target["mask"].numpy()
        counts[row] = np.bincount(mask.reshape(-1), minlength=IGNORED + 1)[:classes]

    damage = Damage()
    damage.visit(len(places), count, split)
    damage.report()
    return np.asarray(counts.sum(axis=0))
