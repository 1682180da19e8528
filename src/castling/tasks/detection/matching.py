"""Which detections of one image are right: COCO's matching at one IoU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Matches(NamedTuple):
    """The outcome for one image and class.

    Attributes:
        found: (n,) position of the object that each detection is, -1 for none.
        ignored: (n,) whether a detection lies on a crowd only, which makes it neither right nor
            wrong.
        overlap: (n,) IoU with that object or crowd; without one, the largest with any object.
        reached: (m,) the largest IoU of any detection with each object.
    """

    found: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    overlap: NDArray[np.float64]
    reached: NDArray[np.float64]


def match(
    boxes: NDArray[np.float64],
    objects: NDArray[np.float64],
    crowds: NDArray[np.bool_],
    threshold: float = 0.5,
) -> Matches:
    """Give every detection, best first, the object it overlaps most among those not taken yet.

    With a crowd, IoU is the share of the detection that lies in it, and any number of detections
    may be its.

    Args:
        boxes: (n, 4) x1, y1, x2, y2 of the detections of one class, best first.
        objects: (m, 4) of the objects of that class.
        crowds: (m,) which of them stand for many.
        threshold: IoU from which on a detection is right.
    """
    shared = overlaps(boxes, objects, crowds)
    found = np.full(len(boxes), -1)
    ignored = np.zeros(len(boxes), dtype=bool)
    best = shared.max(axis=1, initial=0.0)
    taken = np.zeros(len(objects), dtype=bool)
    for row, own in enumerate(shared):
        for group in (~crowds & ~taken, crowds):
            enough = np.flatnonzero(group & (own >= threshold))
            if len(enough):
                choice = max(enough, key=lambda i: (own[i], i))  # of equals COCO takes the last
                best[row] = own[choice]
                if crowds[choice]:
                    ignored[row] = True
                else:
                    found[row], taken[choice] = choice, True
                break
    return Matches(found, ignored, best, shared.max(axis=0, initial=0.0))


def overlaps(
    boxes: NDArray[np.float64], objects: NDArray[np.float64], crowds: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """(n, m) IoU; with a crowd, the share of the detection inside."""
    if not len(boxes) or not len(objects):
        return np.zeros((len(boxes), len(objects)))
    low = np.maximum(boxes[:, None, :2], objects[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], objects[None, :, 2:])
    common = np.prod(np.clip(high - low, 0, None), axis=2)
    own = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)[:, None]
    theirs = np.prod(objects[:, 2:] - objects[:, :2], axis=1)[None]
    union = np.where(crowds[None], own, own + theirs - common)
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)
