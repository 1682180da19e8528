"""Figures of a confusion matrix of pixels.

IoU of a class: right pixels / (pixels of the class + pixels called so − right pixels). A class that
neither the truth nor any prediction shows has none, and is left out of the means; one that is only
predicted has an IoU of 0 and no accuracy.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from castling.utils.labels import IGNORED

Counts = NDArray[np.int64]


class ClassShares(NamedTuple):
    """Of each class, in [0, 1]; NaN where there is none.

    Attributes:
        iou: (K,) intersection over union.
        accuracy: (K,) share of the class's pixels that are called so (recall).
        precision: (K,) share of the pixels called so that are of the class.
    """

    iou: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    precision: NDArray[np.float64]


def confusion(predicted: Tensor, truth: Tensor, classes: int) -> Tensor:
    """(K, K) int64 pixels: a row for each class of the truth, a column for what was said.

    Args:
        predicted: labels of any shape.
        truth: as ``predicted``; pixels of ``IGNORED`` are left out.
        classes: K.

    Raises:
        ValueError: a label is no class, or the shapes differ.
    """
    if predicted.shape != truth.shape:
        raise ValueError(
            f"the prediction is of {tuple(predicted.shape)} pixels, the mask of "
            f"{tuple(truth.shape)}"
        )
    known = truth != IGNORED
    pairs = classes * truth[known].long() + predicted[known].long()
    counts = pairs.bincount(minlength=classes**2)
    if len(counts) > classes**2:
        raise ValueError(
            f"a mask has a pixel of label {(len(counts) - 1) // classes}, but there are {classes} "
            f"classes: labels are 0 to {classes - 1}, and {IGNORED} for no class"
        )
    return counts.view(classes, classes)


def class_shares(matrix: Counts) -> ClassShares:
    """Figures of each class.

    Args:
        matrix: (K, K) pixels; a row for each class of the truth, a column for what was said.
    """
    right = matrix.diagonal().astype(np.float64)
    truth, said = matrix.sum(1), matrix.sum(0)
    return ClassShares(
        _share(right, truth + said - right), _share(right, truth), _share(right, said)
    )


def overall_figures(matrix: Counts) -> dict[str, float]:
    """``mIoU``, ``mAcc`` and ``pAcc`` in percent; 0 where no pixel has a class."""
    shares = class_shares(matrix)
    total = int(matrix.sum())
    return {
        "mIoU": 100 * mean(shares.iou),
        "mAcc": 100 * mean(shares.accuracy),
        "pAcc": 100 * float(matrix.trace()) / max(1, total),
    }


def mean(values: NDArray[np.float64]) -> float:
    """Over the classes that have a value; 0 where none has."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else 0.0


def _share(part: NDArray[np.float64], whole: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
