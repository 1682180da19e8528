"""From scores of a batch to the labels of the pixels of an original image."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

Size = tuple[int, int]
#: Scores that are computed at once; what an image of 10,000 pixels needs does not fit in memory.
_AT_ONCE = 1 << 24


class _Neighbours(NamedTuple):
    """Of every pixel along a side: the cells before and after its centre, and how near the second.

    Attributes:
        low: (n,) positions.
        high: (n,) positions.
        share: (n,) of the second, in [0, 1].
    """

    low: Tensor
    high: Tensor
    share: Tensor


def original_labels(scores: Tensor, frame: Size, valid: Size, size: Size) -> Tensor:
    """(H, W) uint8 labels of an original image: the largest score, resized bilinearly.

    The same as resizing to ``frame``, cutting the padding off and resizing to ``size``, but in one
    step and a few rows at a time.

    Args:
        scores: (K, h, w) of the padded image.
        frame: (height, width) of the padded image in pixels.
        valid: (height, width) of the image in it.
        size: (height, width) of the original image.
    """
    rows = _neighbours(size[0], valid[0], frame[0], scores.shape[1])
    columns = _neighbours(size[1], valid[1], frame[1], scores.shape[2])
    step = max(1, _AT_ONCE // (len(scores) * size[1]))
    parts = [
        _resized(scores, _part(rows, start, start + step), columns).argmax(0).to(torch.uint8)
        for start in range(0, size[0], step)
    ]
    return torch.cat(parts)


def _neighbours(count: int, valid: int, frame: int, cells: int) -> _Neighbours:
    """Half-pixel centres, as ``interpolate`` has them with ``align_corners=False``."""
    centre = (torch.arange(count, dtype=torch.float64) + 0.5) * (valid / count)
    place = (centre * (cells / frame) - 0.5).clamp(0, cells - 1)
    low = place.floor().long()
    return _Neighbours(low, (low + 1).clamp(max=cells - 1), (place - low).float())


def _part(neighbours: _Neighbours, start: int, stop: int) -> _Neighbours:
    return _Neighbours(*(values[start:stop] for values in neighbours))


def _resized(scores: Tensor, rows: _Neighbours, columns: _Neighbours) -> Tensor:
    """(K, n, m) scores at pixels."""
    first, last = int(rows.low[0]), int(rows.high[-1])
    used = scores[:, first : last + 1].float()
    across = _between(used, columns, 2)
    return _between(across, _Neighbours(rows.low - first, rows.high - first, rows.share), 1)


def _between(values: Tensor, at: _Neighbours, axis: int) -> Tensor:
    """Linear interpolation along an axis."""
    shape = [1, 1, 1]
    shape[axis] = -1
    device = values.device
    low = values.index_select(axis, at.low.to(device))
    high = values.index_select(axis, at.high.to(device))
    return low.lerp_(high, at.share.to(device).view(shape))
