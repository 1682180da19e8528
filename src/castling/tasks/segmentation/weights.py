"""Weights of classes from the number of their pixels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from castling.data.segmentation.counts import pixel_counts
from castling.data.splits import Selection
from castling.utils.text import few

#: Images whose pixels are counted, at most; spread evenly over all.
_IMAGES = 2000
#: c of ENet's formula.
_CONSTANT = 1.02


def counted(images: Selection) -> NDArray[np.int64]:
    """(K,) pixels of each class, in up to 2000 of the images, spread evenly.

    Raises:
        DataError: masks are damaged.
    """
    count = len(images)
    chosen = np.arange(min(count, _IMAGES)) * count // min(count, _IMAGES)
    return pixel_counts(images.source, images.split, images.positions[chosen])


def automatic_weights(pixels: NDArray[np.int64]) -> Tensor:
    """(K,) weight of each class: 1/ln(1.02 + share of its pixels), scaled to a mean of 1.

    ENet's (Paszke et al., 2016, section 5.2): before scaling within [1.4, 50.5].

    Args:
        pixels: (K,) of each class.
    """
    shares = pixels / max(1, int(pixels.sum()))
    weights = 1 / np.log(_CONSTANT + shares)
    return torch.from_numpy(weights / weights.mean()).float()


def given_weights(weights: Sequence[float], classes: Sequence[str]) -> Tensor:
    """(K,) of a list; ValueError where it is of another length."""
    if len(weights) != len(classes):
        raise ValueError(
            f"task.class_weights has {len(weights)} weights, the data have {len(classes)} classes "
            f"({few(classes)}): give one for each"
        )
    return torch.tensor(weights, dtype=torch.float32)
