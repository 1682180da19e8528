"""Rows of ``predictions.csv``: which classes the pixels of an image are, and are called.

One row for each pair of a class and what is said of it; ``near`` counts those of its pixels that
lie near the border of another class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from castling.tasks.segmentation.figures import Counts, class_shares, confusion, mean
from castling.utils.labels import IGNORED

COLUMNS = ("label", "predicted", "pixels", "near")
#: Share of an image's diagonal within which a pixel is near a border.
NEAR = 0.01
#: Below all labels and their negatives.
_LOWEST = -256


def rows_of(mask: NDArray[np.uint8], truth: Tensor, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of one image, the most frequent pair first; none where no pixel has a class.

    Args:
        mask: (H, W) what is said.
        truth: (H, W) labels.
        classes: names in the order of the labels.
    """
    truth = truth.cpu()
    said = torch.from_numpy(mask)
    height, width = truth.shape
    close = near_borders(truth, max(1, round(NEAR * (height**2 + width**2) ** 0.5)))
    pixels = confusion(said, truth, len(classes)).numpy()
    near = confusion(said[close], truth[close], len(classes)).numpy()
    order = np.argsort(-pixels, axis=None, kind="stable")[: int((pixels > 0).sum())]
    rows = []
    for flat in order.tolist():
        label, predicted = divmod(flat, len(classes))
        rows.append(
            {
                "label": classes[label],
                "predicted": classes[predicted],
                "pixels": int(pixels[label, predicted]),
                "near": int(near[label, predicted]),
            }
        )
    return rows


def near_borders(truth: Tensor, distance: int) -> Tensor:
    """(H, W) bool: pixels with one of another class at most ``distance`` rows and columns away.

    Pixels of no class make no border.

    Args:
        truth: (H, W) labels.
        distance: in pixels, at least 1.
    """
    values = truth.to(torch.int16)
    known = truth != IGNORED
    highest = _largest(values.masked_fill(~known, _LOWEST), distance)
    lowest = -_largest((-values).masked_fill(~known, _LOWEST), distance)
    return known & (highest != lowest)


def _largest(values: Tensor, distance: int) -> Tensor:
    """The largest value within ``distance`` rows and columns."""
    size = 2 * distance + 1
    padded = F.pad(values, (distance,) * 4, value=_LOWEST)
    return _running_largest(_running_largest(padded, size, 0), size, 1)


def _running_largest(values: Tensor, size: int, axis: int) -> Tensor:
    """The largest of each value and the ``size`` - 1 after it; so many are fewer at the end.

    Windows are doubled, so that a large one takes few passes.
    """
    seen = 1
    while seen < size:
        step = min(seen, size - seen)
        count = values.shape[axis] - step
        values = torch.maximum(values.narrow(axis, 0, count), values.narrow(axis, step, count))
        seen += step
    return values


def matrix_of(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], column: str = "pixels"
) -> Counts:
    """(K, K) pixels of rows, the inverse of :func:`rows_of`."""
    labels = {name: label for label, name in enumerate(classes)}
    matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
    for row in rows:
        matrix[labels[row["label"]], labels[row["predicted"]]] += int(row[column])
    return matrix


def images_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Positions of the rows of each image that has any."""
    found: dict[str, list[int]] = {}
    for position, row in enumerate(rows):
        found.setdefault(str(row["name"]), []).append(position)
    return found


def image_figures(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """MIoU over the classes of one image, and the share of its pixels that are right."""
    classes = sorted({row[name] for row in rows for name in ("label", "predicted")})
    matrix = matrix_of(rows, classes)
    return mean(class_shares(matrix).iou), float(matrix.trace() / max(1, matrix.sum()))
