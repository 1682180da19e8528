"""Masks as annotation files write them: polygons and run lengths, checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castling.data.detection.masks import (
    Rle,
    counts_to_rle,
    mask_areas,
    mask_boxes,
    polygons_to_rle,
)

#: Polygons, each x, y, x, y, … in pixels (or in shares of the sides), or compressed run lengths.
Segmentation = list[NDArray[np.float64]] | Rle

_APART = 0.5  # intersection over union of a box and its mask's box, below which they disagree
_NEAR = 2.0  # pixels by which all their sides may differ, however small they are


def read_segmentation(value: Any, size: tuple[int, int]) -> tuple[Segmentation | None, str]:
    """A ``segmentation`` of COCO's format.

    Args:
        value: polygons, compressed or plain run lengths, or nothing.
        size: (height, width) of the image.

    Returns:
        The mask, None where there is none; and the name of its fault, empty for none.
    """
    if isinstance(value, dict):
        rle = _read_rle(value, size)
        return rle, "" if rle is not None else "bad_rle"
    if value is None or (isinstance(value, list) and not value):
        return None, ""
    if not isinstance(value, list):
        return None, "bad_polygon"
    polygons = [_read_polygon(each) for each in value]
    good = [each for each in polygons if each is not None]
    return (good, "") if len(good) == len(polygons) else (None, "bad_polygon")


def to_rle(segmentation: Segmentation, size: tuple[int, int], relative: bool = False) -> Rle:
    """The mask in an image of (height, width); ``relative``: polygons are shares of its sides."""
    if isinstance(segmentation, dict):
        return segmentation
    scale = np.array(size[::-1]) if relative else 1
    return polygons_to_rle(
        [(each.reshape(-1, 2) * scale).reshape(-1).tolist() for each in segmentation], size
    )


def box_to_rle(box: Sequence[float], size: tuple[int, int]) -> Rle:
    """A filled box x1, y1, x2, y2 as a mask."""
    x1, y1, x2, y2 = map(float, box)
    return polygons_to_rle([[x1, y1, x2, y1, x2, y2, x1, y2]], size)


def compare_with_boxes(
    masks: Sequence[Segmentation], boxes: NDArray[np.float64], sizes: Sequence[tuple[int, int]]
) -> list[str]:
    """The fault of each mask beside its box x1, y1, x2, y2; empty where they fit.

    Args:
        masks: n of them.
        boxes: (n, 4).
        sizes: (height, width) of their images.
    """
    around = np.zeros((len(masks), 4))
    drawn = np.zeros(len(masks), dtype=np.bool_)
    points = {row: np.concatenate(each) for row, each in enumerate(masks) if isinstance(each, list)}
    polygons = list(points)
    if polygons:
        around[polygons] = _bounds(list(points.values()))
        limits = np.array([sizes[row] for row in polygons], dtype=np.float64)[:, ::-1]
        around[polygons] = around[polygons].clip(0, np.concatenate([limits, limits], axis=1))
        # Only what is thin can miss every pixel, and drawing all polygons takes a minute in COCO.
        drawn[polygons] = (around[polygons, 2:] - around[polygons, :2]).min(axis=1) >= 2
    rles = {row: each for row, each in enumerate(masks) if isinstance(each, dict)}
    around[list(rles)] = mask_boxes(list(rles.values()))
    for row in np.flatnonzero(~drawn).tolist():
        drawn[row] = mask_areas([to_rle(masks[row], sizes[row])])[0] > 0
    low, high = np.maximum(around[:, :2], boxes[:, :2]), np.minimum(around[:, 2:], boxes[:, 2:])
    shared = (high - low).clip(0).prod(axis=1)
    both = _areas(around) + _areas(boxes) - shared
    apart = (np.abs(around - boxes).max(axis=1, initial=0) > _NEAR) & (shared < _APART * both)
    return [
        "empty_mask" if not seen else "other_mask" if other else ""
        for seen, other in zip(drawn.tolist(), apart.tolist(), strict=True)
    ]


def _areas(boxes: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def _bounds(points: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """(n, 4) x1, y1, x2, y2 around each of n lists of points."""
    together = np.concatenate(points).reshape(-1, 2)
    starts = np.cumsum([0, *(len(each) // 2 for each in points[:-1])])
    low, high = np.minimum.reduceat(together, starts), np.maximum.reduceat(together, starts)
    return np.concatenate([low, high], axis=1)


def _read_polygon(value: Any) -> NDArray[np.float64] | None:
    try:
        points = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        return None
    sound = points.ndim == 1 and len(points) >= 6 and len(points) % 2 == 0
    return points if sound and np.isfinite(points).all() else None


def _read_rle(value: dict[str, Any], size: tuple[int, int]) -> Rle | None:
    counts, stated = value.get("counts"), value.get("size")
    if not isinstance(stated, list) or stated != list(size):
        return None
    if isinstance(counts, str) and counts.isascii():
        data = counts.encode("ascii")
        return {"size": list(size), "counts": data} if _fit(_decompress(data), size) else None
    if isinstance(counts, list) and counts and all(type(each) is int for each in counts):
        return counts_to_rle(counts, size) if _fit(np.array(counts), size) else None
    return None


def _fit(lengths: NDArray[np.int64], size: tuple[int, int]) -> bool:
    """Whether run lengths cover an image of (height, width) exactly."""
    return len(lengths) > 0 and bool((lengths >= 0).all()) and lengths.sum() == size[0] * size[1]


def _decompress(data: bytes) -> NDArray[np.int64]:
    """Run lengths of COCO's compressed form: numbers of 5 bits a letter, lowest first.

    From the fourth on they are differences to the last but one. (``rleFrString`` of COCO's API.)
    Empty where it is no such form.
    """
    letters = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if not len(letters) or (letters < 0).any() or (letters > 63).any() or letters[-1] & 32:
        return np.zeros(0, dtype=np.int64)
    ends = np.flatnonzero(letters & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    digits = ends - starts + 1
    if digits.max() > 8:  # more than 40 bits
        return np.zeros(0, dtype=np.int64)
    shifts = 5 * (np.arange(len(letters)) - np.repeat(starts, digits))
    numbers = np.add.reduceat((letters & 31) << shifts, starts)
    numbers -= np.where(letters[ends] & 16, np.int64(1) << (5 * digits), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
