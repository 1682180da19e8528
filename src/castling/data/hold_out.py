"""Shares and subsets of labelled images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from castling.data.errors import DataError
from castling.utils.randomness import Keys, keys, uniform

Indices = NDArray[np.int64]


def hold_out(
    labels: Sequence[int] | Indices,
    fractions: Sequence[float],
    classes: Sequence[str],
    *,
    seed: int,
    shuffle: bool = True,
) -> list[Indices]:
    """Split off shares of every class, by position.

    Args:
        labels: class of every image.
        fractions: share of each part that is held out.
        classes: names, for errors; an empty one stands for images without classes.
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
        if name and not len(members):  # a class of others
            continue
        if shuffle:
            members = members[np.argsort(keys(seed, label, members), kind="stable")]
        sizes = [max(1, round(fraction * len(members))) for fraction in fractions]
        if sum(sizes) >= len(members):
            raise _too_few(name, f"{len(members)} images", len(fractions))
        stops = np.cumsum([len(members) - sum(sizes), *sizes])
        for part, stop, start in zip(parts, stops, [0, *stops[:-1]], strict=True):
            part.append(members[start:stop])
    return [np.sort(np.concatenate(part)) for part in parts]


def hold_out_by_key(
    labels: Sequence[int] | Indices,
    image_keys: Keys,
    fractions: Sequence[float],
    classes: Sequence[str],
    *,
    seed: int,
) -> list[Indices]:
    """Split off shares of every class, so that adding an image moves no other.

    The key of an image gives a number in [0, 1), and the interval of the shares in which it lies
    decides, whatever other images there are. So shares are met on average, and images of one key,
    copies of one file, fall into one part.

    A small class may get no image in some part by this rule. Then the image whose number is nearest
    to the part's interval stands in, of those that leave no part of a class empty. Adding or
    removing an image of such a class may exchange the one that stands in; no others ever move.

    Args:
        labels: (n,) class of every image.
        image_keys: (n,) of the images.
        fractions: share of each part that is held out.
        classes: names, for errors; an empty one stands for images without classes.
        seed: chooses the images.

    Returns:
        Sorted positions of what remains, then of each held-out part; disjoint, together complete.

    Raises:
        DataError: a class has too few different images to appear in every part.
    """
    labels = np.asarray(labels)
    unique, content = np.unique(image_keys, return_inverse=True)
    draws = uniform(keys(seed, unique.view(np.int64)), 0)
    stops = np.cumsum(fractions)
    # Held-out parts lie at the beginning of [0, 1), what remains behind them.
    intervals = [(stops[-1], 1.0), *zip([0.0, *stops[:-1]], stops, strict=True)]
    part = (np.searchsorted(stops, draws, side="right") + 1) % (len(fractions) + 1)
    pairs = np.unique(np.stack([content, labels]), axis=1)  # each content once per class
    counts = np.zeros((len(classes), len(intervals)), dtype=np.int64)
    np.add.at(counts, (pairs[1], part[pairs[0]]), 1)
    # A class without any image is of others.
    for label in np.flatnonzero((counts == 0).any(axis=1) & (counts > 0).any(axis=1)):
        members = pairs[0][pairs[1] == label]
        for empty in np.flatnonzero(counts[label] == 0):
            low, high = intervals[empty]
            distance = np.maximum(low - draws[members], draws[members] - high)
            for each in members[np.argsort(distance, kind="stable")]:
                owners = pairs[1][pairs[0] == each]
                if (counts[owners, part[each]] > 1).all():
                    counts[owners, part[each]] -= 1
                    counts[owners, empty] += 1
                    part[each] = empty
                    break
            else:
                count = f"{len(members)} different images"
                raise _too_few(classes[int(label)], count, len(fractions))
    return [np.flatnonzero(part[content] == each) for each in range(len(intervals))]


def balanced_subset(
    labels: Sequence[int] | Indices,
    count: int,
    *,
    seed: int,
    what: str,
    image_keys: Keys | None = None,
) -> Indices:
    """Choose ``count`` images, as evenly over the classes as their numbers allow.

    A larger subset of the same seed contains a smaller one.

    Args:
        labels: class of every image.
        count: how many to choose.
        seed: chooses the images, and the classes that get one more.
        what: the option's name, for errors.
        image_keys: (n,) by which images are drawn; None draws by position.

    Returns:
        Sorted positions.

    Raises:
        DataError: there are fewer images, or more classes, than ``count``.
    """
    labels = np.asarray(labels)
    present = np.unique(labels)
    if not len(present) <= count <= len(labels):
        raise DataError(
            f"{what} is {count}, but there are {len(labels)} images in {len(present)} classes; "
            "it must lie between these numbers"
        )
    # Rank every image within its class; taking images by rank alternates between the classes.
    own = np.arange(len(labels)) if image_keys is None else image_keys.view(np.int64)
    drawn = keys(seed, own)
    class_keys = keys(seed, labels, np.array([-1]))
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in present:
        members = np.flatnonzero(labels == label)
        ranks[members[np.argsort(drawn[members], kind="stable")]] = np.arange(len(members))
    order = np.lexsort((class_keys, ranks))
    return np.sort(order[:count])


def _too_few(name: str, images: str, parts: int) -> DataError:
    """That a class, or a set without classes, cannot be divided."""
    return DataError(
        f"{f'class {name!r} has' if name else 'the data have'} {images}, too few to be split into "
        f"training and {parts} held-out parts; add images or give the splits yourself"
    )
