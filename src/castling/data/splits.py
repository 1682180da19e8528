"""Which images train, validate and test: stratified, seeded, disjoint."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from castling.data.config import SplitConfig
from castling.data.hold_out import Indices, balanced_subset, hold_out, hold_out_by_key
from castling.data.keys import ImageKeys
from castling.data.registry import Source
from castling.data.sample import Sample
from castling.utils.text import percent

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


def choose_images(
    source: Source, config: SplitConfig, image_keys: ImageKeys | None = None
) -> tuple[dict[str, Selection], list[str]]:
    """The images of ``train``, ``val`` and ``test``.

    Splits that the source lacks are held out from its training images. Where only one of ``val``
    and ``test`` exists and no share is asked for the other, both are the same object.

    Args:
        source: the images.
        config: shares and subsets.
        image_keys: of the images, by which they are drawn; None draws by position.

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
    _hold_out_missing(splits, notes, source, config, image_keys)
    notes += share_missing(splits)
    for split, count, option in (
        ("train", config.subset, "subset"),
        ("val", config.val_subset, "val_subset"),
    ):
        if count is None:
            continue
        whole = splits[split]
        numbers = None
        if image_keys is not None:
            numbers = image_keys.numbers(whole.split)[whole.positions]
        chosen = balanced_subset(
            _strata(whole), count, seed=config.seed, what=option, image_keys=numbers
        )
        splits[split] = whole.part(chosen)
        notes.append(
            f"training on {len(chosen)} of {len(whole)} images, spread over the classes"
            if split == "train"
            else f"validating on {len(chosen)} of {len(whole)} images"
        )
    return splits, notes


def share_missing(splits: dict[str, Selection]) -> list[str]:
    """Let one of ``val`` and ``test`` stand for the other where that is missing; notes say so."""
    if "val" not in splits:
        splits["val"] = splits["test"]
    elif "test" not in splits:
        splits["test"] = splits["val"]
    else:
        return []
    if splits["val"].split == "test":
        return [
            "there is no validation split: the test images serve for validation, so a checkpoint "
            "chosen by validation has seen them; set val_fraction to hold out training images"
        ]
    return [
        "there is no test split: test figures are those of the validation images; set "
        "test_fraction to hold out training images"
    ]


def held_out_shares(source: Source, config: SplitConfig) -> list[tuple[str, float]]:
    """The splits that are held out from the training images, with their shares."""
    info = source.info
    return [
        (split, share)
        for split, share, asked, other in (
            ("val", config.val_fraction or _VAL_FRACTION, config.val_fraction, "test"),
            ("test", config.test_fraction or info.test_fraction, config.test_fraction, "val"),
        )
        if split not in info.splits and (asked is not None or (share and other not in info.splits))
    ]


def _hold_out_missing(
    splits: dict[str, Selection],
    notes: list[str],
    source: Source,
    config: SplitConfig,
    image_keys: ImageKeys | None,
) -> None:
    info = source.info
    missing = held_out_shares(source, config)
    if not missing:
        return
    everything = splits["train"]
    shares = [share for _, share in missing]
    classes = info.classes if everything.labels is not None else [""]
    if image_keys is None:
        parts = hold_out(
            _strata(everything), shares, classes, seed=config.seed, shuffle=info.shuffle
        )
    else:
        numbers = image_keys.numbers("train")
        parts = hold_out_by_key(_strata(everything), numbers, shares, classes, seed=config.seed)
    splits["train"] = everything.part(parts[0])
    for (split, _), part in zip(missing, parts[1:], strict=True):
        splits[split] = everything.part(part)
        # Every class gives at least one image, so the share may be larger than the one asked for.
        share = len(part) / len(everything)
        notes.append(
            f"{len(part)} images ({percent(share, 0)}) of training are held out for {split}"
        )


def _strata(selection: Selection) -> Indices:
    """Labels by which a selection is divided; one for all images where it has none."""
    labels = selection.labels
    return np.zeros(len(selection), dtype=np.int64) if labels is None else labels
