"""Pooling as a token mixer: the mean of the neighbours minus the token (PoolFormer, CVPR 2022)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from castling.ops.common import upcast


def pooling(image: Tensor, size: int, mask: Tensor | None = None) -> Tensor:
    """Mean over the size×size neighbours of x, minus x (Yu et al., arXiv 2111.11418, Eq. 4).

    Neighbours outside of the image or of the mask are not counted.

    Args:
        image: (B, C, h, w).
        size: side of the window, odd.
        mask: (B, 1, h, w) boolean, True where a position takes part.

    Returns:
        (B, C, h, w) in the dtype of ``image``; sums are float32 or better.
    """
    (x,) = upcast(image)
    if mask is None:
        mean = F.avg_pool2d(x, size, stride=1, padding=size // 2, count_include_pad=False)
        return (mean - x).to(image.dtype)
    x = x.masked_fill(~mask, 0)
    total = F.avg_pool2d(x, size, stride=1, padding=size // 2)
    share = F.avg_pool2d(mask.to(x.dtype), size, stride=1, padding=size // 2)
    return (total / share.masked_fill(share == 0, 1) - x).to(image.dtype)
