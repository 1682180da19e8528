"""Which images train, validate and test: stratified, seeded, disjoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from castling.data.config import SplitConfig
from castling.data.errors import DataError
from castling.data.registry import Source
from castling.data.sample import Sample
from castling.utils.randomness import keys

Indices = NDArray[np.int64]

_VAL_FRACTION = 0.1


@dataclass(frozen=True, eq=False)
class Selection:
    """Some of the images of a source's split.

    Attributes:
        source: holds them.
        split: of the source.
        positions: which of the split's images, (n,).
    """

    source: Source
    split: str
    positions: Indices

    def __len__(self) -> int:
        return len(self.positions)

    @property
    def labels(self) -> Indices | None:
        """(n,) class of every image; None where there is none."""
        labels = self.source.labels(self.split)
        return None if labels is None else labels[self.positions]

    def part(self, chosen: Indices) -> Selection:
        """The images at the given places of this selection."""
        return replace(self, positions=self.positions[chosen])

    def sample(self, index: int) -> Sample:
        """One image with its target; its index is the place in this selection.

        Raises:
            DataError: the image is damaged; it is named.
        """
        return replace(self.source.sample(self.split, int(self.positions[index])), index=index)

    def size(self, index: int) -> tuple[int, int]:
        """(height, width) of one image before any transform."""
        return self.source.size(self.split, int(self.positions[index]))

    def name(self, index: int) -> str:
        """How a person finds the image."""
        return self.source.name(self.split, int(self.positions[index]))


def choose_images(source: Source, config: SplitConfig) -> tuple[dict[str, Selection], list[str]]:
    """The images of ``train``, ``val`` and ``test``.

    Splits that the source lacks are held out from its training images. Where only one of ``val``
    and ``test`` exists and no share is asked for the other, both are the same object.

    Returns:
        The selections by split, and what a person should know about how they came about.

    Raises:
        DataError: there are too few images for the shares or subsets.
    """
    info = source.info
    splits = {
        split: Selection(source, split, np.arange(count)) for split, count in info.splits.items()
    }
    notes = list(info.notes)
    _hold_out_missing(splits, notes, source, config)
    if "val" not in splits:
        splits["val"] = splits["test"]
        notes.append(
            "there is no validation split: the test images serve for validation, so a checkpoint "
            "chosen by validation has seen them; set val_fraction to hold out training images"
        )
    elif "test" not in splits:
        splits["test"] = splits["val"]
        notes.append(
            "there is no test split: test figures are those of the validation images; set "
            "test_fraction to hold out training images"
        )
    for split, count, option in (
        ("train", config.subset, "subset"),
        ("val", config.val_subset, "val_subset"),
    ):
        if count is None:
            continue
        whole = splits[split]
        chosen = balanced_subset(_strata(whole), count, seed=config.seed, what=option)
        splits[split] = whole.part(chosen)
        notes.append(
            f"training on {len(chosen)} of {len(whole)} images, spread over the classes"
            if split == "train"
            else f"validating on {len(chosen)} of {len(whole)} images"
        )
    return splits, notes


def _hold_out_missing(
    splits: dict[str, Selection], notes: list[str], source: Source, config: SplitConfig
) -> None:
    info = source.info
    missing = [
        (split, share)
        for split, share, asked, other in (
            ("val", config.val_fraction or _VAL_FRACTION, config.val_fraction, "test"),
            ("test", config.test_fraction or info.test_fraction, config.test_fraction, "val"),
        )
        if split not in splits and (asked is not None or other not in splits)
    ]
    if not missing:
        return
    everything = splits["train"]
    parts = hold_out(
        _strata(everything),
        [share for _, share in missing],
        info.classes if everything.labels is not None else ["all images"],
        seed=config.seed,
        shuffle=info.shuffle,
    )
    splits["train"] = everything.part(parts[0])
    for (split, _), part in zip(missing, parts[1:], strict=True):
        splits[split] = everything.part(part)
        # Every class gives at least one image, so the share may be larger than the one asked for.
        share = len(part) / len(everything)
        notes.append(f"{len(part)} images ({share:.0%}) of training are held out for {split}")


def _strata(selection: Selection) -> Indices:
    """Labels by which a selection is divided; one for all images where it has none."""
    labels = selection.labels
    return np.zeros(len(selection), dtype=np.int64) if labels is None else labels


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
    """Choose ``count`` images, as evenly over the classes as their numbers allow.

    A larger subset of the same seed contains a smaller one.

    Args:
        labels: class of every image.
        count: how many to choose.
        seed: chooses the images, and the classes that get one more.
        what: the option's name, for errors.

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
    image_keys = keys(seed, np.arange(len(labels)))
    class_keys = keys(seed, labels, np.array([-1]))
    ranks = np.empty(len(labels), dtype=np.int64)
    for label in present:
        members = np.flatnonzero(labels == label)
        ranks[members[np.argsort(image_keys[members], kind="stable")]] = np.arange(len(members))
    order = np.lexsort((class_keys, ranks))
    return np.sort(order[:count])
