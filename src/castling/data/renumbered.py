"""A source whose labels count the classes as a model does, matched by their names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castling.data.errors import DataError
from castling.data.problems import DataReport, Depth, ReportingSource
from castling.data.registry import FileSource, Source
from castling.data.sample import Sample
from castling.utils.labels import IGNORED
from castling.utils.text import few


def renumbered(source: Source, classes: Sequence[str], what: str) -> Source:
    """A source with the labels that its classes have among others, by name.

    Args:
        source: any; its images and splits stay as they are.
        classes: names in the order of the wanted labels; those that the source lacks have no image.
        what: a person calls the source, for errors.

    Returns:
        ``source`` itself where its classes are ``classes``.

    Raises:
        DataError: a class of the source is not among ``classes``, or two have one name.
    """
    own = source.info.classes
    if own == list(classes):
        return source
    unknown = [name for name in own if name not in classes]
    if unknown:
        raise DataError(
            f"{what} has classes that the model does not know: {few(unknown)}; it knows "
            f"{few(classes)}. Leave their images or objects out, or give them the model's names"
        )
    twice = [name for name in own if Counter(own)[name] > 1 or Counter(classes)[name] > 1]
    if twice:
        raise DataError(
            f"the classes of {what} are others than the model's or in another order, and cannot "
            f"be matched by name, as several have one: {few(list(dict.fromkeys(twice)))}"
        )
    numbers = np.array([classes.index(name) for name in own], dtype=np.int64)
    if isinstance(source, FileSource):
        made = _ReportingFiles if isinstance(source, ReportingSource) else _Files
        return made(source, classes, numbers)
    return _Renumbered(source, classes, numbers)


class _Renumbered:
    """``source`` with the label ``numbers[i]`` in the place of i."""

    def __init__(self, source: Source, classes: Sequence[str], numbers: NDArray[np.int64]) -> None:
        self._source, self._numbers = source, numbers
        note = (
            f"classes are matched by name; these images have {len(numbers)} of the model's "
            f"{len(classes)}"
        )
        notes = (*source.info.notes, note)
        self.info = replace(source.info, classes=list(classes), notes=notes)
        table = np.arange(IGNORED + 1)
        table[: len(numbers)] = numbers[: IGNORED + 1]
        #: From a value of ``mask`` to another.
        self._of_pixels = torch.from_numpy(table.astype(np.uint8))

    def sample(self, split: str, index: int) -> Sample:
        sample = self._source.sample(split, index)
        return replace(
            sample, target={name: self._other(name, old) for name, old in sample.target.items()}
        )

    def _other(self, name: str, values: Tensor) -> Tensor:
        if name in ("label", "labels"):
            return torch.from_numpy(self._numbers)[values]
        if name == "mask":
            return type(values)(self._of_pixels[values.as_subclass(Tensor).long()])
        return values

    def size(self, split: str, index: int) -> tuple[int, int]:
        return self._source.size(split, index)

    def name(self, split: str, index: int) -> str:
        return self._source.name(split, index)

    def labels(self, split: str) -> NDArray[np.int64] | None:
        labels = self._source.labels(split)
        return None if labels is None else self._numbers[labels]

    def problems(self) -> list[str]:
        return self._source.problems()


class _Files(_Renumbered):
    """The same of files."""

    _source: FileSource

    def __init__(
        self, source: FileSource, classes: Sequence[str], numbers: NDArray[np.int64]
    ) -> None:
        super().__init__(source, classes, numbers)
        self.noticed = source.noticed

    def path(self, split: str, index: int) -> str:
        return self._source.path(split, index)

    def content(self, split: str, index: int) -> str:
        return self._source.content(split, index)


class _ReportingFiles(_Files):
    """The same of files with annotations."""

    def report(self, splits: Collection[str] | None = None, depth: Depth = "headers") -> DataReport:
        assert isinstance(self._source, ReportingSource)
        return self._source.report(splits, depth)
