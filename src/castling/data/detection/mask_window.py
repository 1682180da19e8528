"""A part of a mask from its run-length encoding, without decoding the whole image.

Of an image of 10,000² pixels with 3,000 objects, the masks decoded whole would be 300 GB to write
and read; their boxes are a thousandth of that.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from castling.data.detection.masks import Rle

_FIRST, _VALUE, _SIGN, _MORE, _BITS = 48, 0x1F, 0x10, 0x20, 5


def run_lengths(counts: bytes) -> NDArray[np.int64]:
    """Lengths of the runs, background and object by turns, of COCO's compressed form.

    A number is a sequence of characters from "0" on, each with 5 bits, the lowest first, and a
    sixth bit that is set where more follow; the fifth bit of the last one is the sign. From the
    fourth number on, it is the difference to the number two before.
    """
    codes = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - _FIRST
    last = np.flatnonzero(codes & _MORE == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    place = np.arange(len(codes)) - np.repeat(first, last - first + 1)
    numbers = np.add.reduceat((codes & _VALUE) << (_BITS * place), first)
    negative = codes[last] & _SIGN != 0
    numbers -= negative.astype(np.int64) << (_BITS * (last - first + 1))
    for start in (1, 2):
        numbers[start::2] = np.cumsum(numbers[start::2])
    return numbers


def decode_window(rle: Rle, top: int, left: int, bottom: int, right: int) -> NDArray[np.uint8]:
    """Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of a mask.

    Args:
        rle: of one object, compressed.
        top: first row.
        left: first column.
        bottom: behind the last row.
        right: behind the last column.

    Returns:
        (bottom - top, right - left), 1 on the object.
    """
    height = rle["size"][0]
    ends = np.cumsum(run_lengths(rle["counts"]))
    # Columns lie one after another: of the runs only what falls into the wanted ones is written.
    inside = np.diff(ends.clip(left * height, right * height), prepend=left * height)
    values = (np.arange(len(ends)) & 1).astype(np.uint8)
    columns = np.repeat(values, inside).reshape(right - left, height)
    return np.ascontiguousarray(columns[:, top:bottom].T)
