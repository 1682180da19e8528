"""Which images train, validate and test: stratified, seeded, disjoint."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castling.data.errors import DataError
from castling.utils.randomness import keys

Indices = NDArray[np.int64]


def hold_out(
    labels: Sequence[int] | Indices,
    fractions: Sequence[float],
    classes: Sequence[str],
    *,
    seed: int,
    shuffle: bool = True,
) -> list[Indices]:
    """Split off shares of every class.

    Args:
        labels: class of every image.
        fractions: share of each part that is held out.
        classes: names, for errors.
        seed: chooses the images.
        shuffle: choose at random; otherwise the last images of every class are held out, the
            last part last, which keeps neighbours (such as one writer's figures) together.

    Returns:
        Sorted positions of what remains, then of each held-out part; disjoint, together complete.

    Raises:
        DataError: a class has too few images to appear in every part.
    """
    labels = np.asarray(labels)
    parts: list[list[Indices]] = [[] for _ in range(len(fractions) + 1)]
    for label, name in enumerate(classes):
        members = np.flatnonzero(labels == label)
        if shuffle:
            members = members[np.argsort(keys(seed, label, members), kind="stable")]
        sizes = [max(1, round(fraction * len(members))) for fraction in fractions]
        if sum(sizes) >= len(members):
            raise DataError(
                f"class {name!r} has {len(members)} images, too few to be split into training and "
                f"{len(fractions)} held-out parts; add images or give the splits as folders"
            )
        stops = np.cumsum([len(members) - sum(sizes), *sizes])
        for part, stop, start in zip(parts, stops, [0, *stops[:-1]], strict=True):
            part.append(members[start:stop])
    return [np.sort(np.concatenate(part)) for part in parts]


def balanced_subset(
    labels: Sequence[int] | Indices, count: int, *, seed: int, what: str
) -> Indices:
    """Choose `count` images, as evenly over the classes as their numbers allow.

    A larger subset of the same seed contains a smaller one.

    Args:
        labels: class of every image.
        count: how many to choose.
        seed: chooses the images, and the classes that get one more.
        what: the option's name, for errors.

    Returns:
        Sorted positions.

    Raises:
        DataError: there are fewer images, or more classes, than `count`.
    """
    labels = np.asarray(labels)
    present = np.unique(labels)
    if not len(present) <= count <= len(labels):
        raise DataError(
            f"{what} is {count}, but there are {len(labels)} images in {len(present)} classes; "
            "it must lie between these numbers"
        )
    # Rank every image within its class; taking images by rank deals the classes out like cards.
    image_keys = keys(seed, np.arange(len(labels)))
    class_keys = keys(seed, labels, np.array([-1]))
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in present:
        members = np.flatnonzero(labels == label)
        ranks[members[np.argsort(image_keys[members], kind="stable")]] = np.arange(len(members))
    order = np.lexsort((class_keys, ranks))
    return np.sort(order[:count])
