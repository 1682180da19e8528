"""Images grouped by their aspect ratio, so that batches need little padding."""

from __future__ import annotations

import math

import numpy as np

from castling.data.hold_out import Indices
from castling.data.splits import Selection
from castling.data.verify import Damage

_PER_DOUBLING = 3  # groups between one width/height ratio and twice that


def aspect_groups(selection: Selection, what: str) -> Indices:
    """(n,) group of every image, neighbouring numbers for neighbouring ratios of width to height.

    Args:
        selection: the images; only their headers are read.
        what: which images, for the error.

    Raises:
        DataError: headers are damaged; the first files are named.
    """
    groups = np.zeros(len(selection), dtype=np.int64)

    def measure(index: int) -> None:
        height, width = selection.size(index)
        groups[index] = round(_PER_DOUBLING * math.log2(width / height))

    damage = Damage()
    damage.visit(len(selection), measure, what)
    damage.report()
    return groups
