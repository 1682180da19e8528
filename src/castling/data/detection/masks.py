"""Masks of objects as run-length encodings, packed into one tensor per image.

A decoded mask takes a byte per pixel: 3,000 objects in an image of 10,000² pixels would take
300 GB. So masks travel encoded, as COCO writes them (compressed, column by column), and whoever
needs pixels decodes the objects that are left.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

#: ``{"size": [height, width], "counts": bytes}``, COCO's compressed form.
Rle = dict[str, Any]

_NUMBER = np.dtype("<i4")
_HEAD = 3  # numbers before the lengths: how many masks, height, width


def pack_masks(rles: Sequence[Rle], size: tuple[int, int] | None = None) -> Tensor:
    """Compressed masks of one image as a 1-D uint8 tensor, which batches and workers can carry.

    Args:
        rles: one per object, all of one size.
        size: (height, width) of the image; None takes that of the first mask.

    Returns:
        Three little-endian 32-bit numbers (count, height, width), the length of each mask, and the
        bytes of all masks.

    Raises:
        ValueError: the masks are of different sizes, or there are none and no size.
    """
    if size is None:
        if not rles:
            raise ValueError("without masks, pack_masks needs the size of the image")
        size = (int(rles[0]["size"][0]), int(rles[0]["size"][1]))
    for rle in rles:
        if tuple(rle["size"]) != tuple(size):
            raise ValueError(f"a mask is of size {tuple(rle['size'])}, its image of {tuple(size)}")
    counts = [_bytes(rle["counts"]) for rle in rles]
    head = np.array([len(counts), *size, *map(len, counts)], dtype=_NUMBER)
    return torch.frombuffer(bytearray(head.tobytes() + b"".join(counts)), dtype=torch.uint8)


def unpack_rles(packed: Tensor) -> list[Rle]:
    """The compressed masks that :func:`pack_masks` packed."""
    data = packed.numpy().tobytes()
    count, height, width = np.frombuffer(data, dtype=_NUMBER, count=_HEAD).tolist()
    lengths = np.frombuffer(data, _NUMBER, count, offset=_HEAD * _NUMBER.itemsize)
    start = (_HEAD + count) * _NUMBER.itemsize
    stops = start + np.cumsum(lengths, dtype=np.int64)
    return [
        {"size": [height, width], "counts": data[stop - length : stop]}
        for length, stop in zip(lengths.tolist(), stops.tolist(), strict=True)
    ]


def decode_masks(packed: Tensor, rows: Sequence[int] | Tensor | None = None) -> Tensor:
    """Masks as pixels.

    Args:
        packed: of :func:`pack_masks`.
        rows: which of them; None for all.

    Returns:
        (n, H, W) of uint8, 1 on the object.
    """
    from faster_coco_eval.core import mask as coco

    rles = unpack_rles(packed)
    _, height, width = np.frombuffer(packed.numpy().tobytes(), _NUMBER, _HEAD).tolist()
    if rows is not None:
        rles = [rles[int(row)] for row in rows]
    if not rles:
        return torch.zeros((0, height, width), dtype=torch.uint8)
    return torch.from_numpy(coco.decode(rles)).permute(2, 0, 1).contiguous()


def encode_masks(masks: Tensor) -> list[Rle]:
    """The inverse of decoding: compressed masks of (n, H, W); not 0 is on the object."""
    from faster_coco_eval.core import mask as coco

    pixels = (masks != 0).to(torch.uint8).permute(1, 2, 0).numpy()
    return list(coco.encode(np.asfortranarray(pixels))) if len(masks) else []


def polygons_to_rle(polygons: Sequence[Sequence[float]], size: tuple[int, int]) -> Rle:
    """The union of polygons, each x, y, x, y, … in pixels, in an image of (height, width)."""
    from faster_coco_eval.core import mask as coco

    rles = coco.frPyObjects([list(map(float, each)) for each in polygons], *size)
    return dict(coco.merge(rles))


def counts_to_rle(counts: Sequence[int], size: tuple[int, int]) -> Rle:
    """Compress plain run lengths: background and object by turns, column by column."""
    from faster_coco_eval.core import mask as coco

    return dict(coco.frPyObjects([{"size": list(size), "counts": list(counts)}], *size)[0])


def mask_areas(rles: Sequence[Rle]) -> np.ndarray:
    """(n,) pixels of each mask, int64."""
    from faster_coco_eval.core import mask as coco

    return np.asarray(coco.area(list(rles)), dtype=np.int64) if rles else np.zeros(0, np.int64)


def mask_boxes(rles: Sequence[Rle]) -> np.ndarray:
    """(n, 4) x1, y1, x2, y2 around each mask, float64; zeros for an empty mask."""
    from faster_coco_eval.core import mask as coco

    if not rles:
        return np.zeros((0, 4))
    boxes = np.asarray(coco.toBbox(list(rles)), dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return boxes


def _bytes(counts: bytes | str) -> bytes:
    return counts.encode("ascii") if isinstance(counts, str) else bytes(counts)
