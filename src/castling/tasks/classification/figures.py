"""Figures of single classes: confusion matrix, precision, recall, F1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class ClassFigures(NamedTuple):
    """Figures of one class.

    Attributes:
        precision: share of the images called so that are so, in [0, 1]; None where none is.
        recall: share of its images that are recognised, in [0, 1]; None without images.
        f1: harmonic mean of the two; 0 where no image is right, None without images.
        images: number of images.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    images: int

    @classmethod
    def of(cls, right: int, images: int, called: int) -> ClassFigures:
        """From numbers of images: recognised, of the class, and called so."""
        return cls(
            precision=right / called if called else None,
            recall=right / images if images else None,
            f1=2 * right / (images + called) if images else None,
            images=images,
        )


def class_figures(matrix: NDArray[np.int64]) -> list[ClassFigures]:
    """Precision, recall and F1 of every class of a confusion matrix (K, K)."""
    counts = zip(matrix.diagonal(), matrix.sum(axis=1), matrix.sum(axis=0), strict=True)
    return [ClassFigures.of(int(right), int(own), int(called)) for right, own, called in counts]


def confusion_matrix(
    labels: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> NDArray[np.int64]:
    """(K, K) number of images by class (row) and prediction (column)."""
    place = {name: index for index, name in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for truth, said in zip(labels, predicted, strict=True):
        matrix[place[truth], place[said]] += 1
    return matrix
