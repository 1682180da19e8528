"""A run's images found again in a source whose files may have changed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from castling.data.config import SplitConfig
from castling.data.errors import DataError
from castling.data.hold_out import Indices
from castling.data.keys import ImageKeys, annotations_of
from castling.data.registry import AnnotatedSource, FileSource
from castling.data.split_record import RecordedImage, SplitRecord
from castling.data.splits import Selection, held_out_shares
from castling.utils.randomness import keys, uniform
from castling.utils.text import few


@dataclass
class Changes:
    """How the files of a source differ from those of a record; paths.

    Attributes:
        removed: by split: files that are gone.
        changed: by split: files of another content, or moved into another class.
        renamed: by split: files of the same class and content under another name.
        annotated: by split: files of the same content that are annotated in another way.
        added: files that are not in the record.
        copies: those of ``added`` whose content was trained on.
    """

    removed: dict[str, list[str]] = field(default_factory=dict)
    changed: dict[str, list[str]] = field(default_factory=dict)
    renamed: dict[str, list[str]] = field(default_factory=dict)
    annotated: dict[str, list[str]] = field(default_factory=dict)
    added: list[str] = field(default_factory=list)
    copies: list[str] = field(default_factory=list)

    @property
    def training(self) -> bool:
        """Whether images trained on are gone or changed, or their annotations are."""
        kinds = (self.removed, self.changed, self.annotated)
        return any(each.get("train") for each in kinds)

    def lines(self) -> list[str]:
        """One line for each kind of change and split."""
        found = [
            f"{split} images {what} since training began: {len(paths)} ({few(paths, 3)})"
            for what, by_split in (
                ("removed", self.removed),
                ("changed", self.changed),
                ("renamed", self.renamed),
                ("whose annotations changed", self.annotated),
            )
            for split, paths in by_split.items()
            if paths
        ]
        if self.added:
            found.append(f"new images: {len(self.added)} ({few(self.added, 3)})")
        if self.copies:
            found.append(
                f"copies of images trained on among the new ones: {len(self.copies)} "
                f"({few(self.copies, 3)})"
            )
        return found


def find_recorded(
    source: FileSource,
    record: SplitRecord,
    image_keys: ImageKeys | None,
    read: Collection[str],
) -> tuple[dict[str, Selection], Changes]:
    """The images of a record in its source, in the record's order.

    A file that is not where it was is looked for by its content.

    Args:
        source: the files as they are now.
        record: of the run.
        image_keys: by content; None, or keys by path, compare names alone.
        read: splits that are about to be read; the others are looked for by name alone.

    Returns:
        The selections by split, as far as the record has them, and the changes.

    Raises:
        DataError: the classes are others, or nothing is left of a split that is about to be read.
    """
    if source.info.classes != record.classes:
        raise DataError(
            f"the classes of {record.source} have changed since training began: they were "
            f"{few(record.classes)}, and are {few(source.info.classes)}; train a new run"
        )
    by_content = image_keys if image_keys is not None and image_keys.by == "content" else None
    changes = Changes()
    places: dict[str, dict[str, int]] = {
        own: {source.path(own, index): index for index in range(count)}
        for own, count in source.info.splits.items()
    }
    known = {image.path for images in record.images.values() for image in images}
    known.update(record.unused)
    new = {own: dict.fromkeys(p for p in paths if p not in known) for own, paths in places.items()}
    splits: dict[str, Selection] = {}
    for split in record.images:
        own = _own_split(split, record, places)
        found = _find_split(
            source,
            split,
            own,
            record,
            places[own],
            new[own],
            by_content if split in read else None,
            changes if split in read else Changes(),
        )
        if not len(found) and split in read:
            raise DataError(
                f"none of the {record.sizes[split]} {split} images of {record.source} is left"
            )
        splits[split] = Selection(source, own, found)
    changes.added = [path for paths in new.values() for path in paths]
    if by_content is not None and changes.added:
        trained = record.trained
        for own, paths in new.items():
            found_keys = by_content.of(own, [places[own][path] for path in paths])
            changes.copies += [p for p, k in zip(paths, found_keys, strict=True) if k in trained]
    return splits, changes


def _own_split(split: str, record: SplitRecord, places: Mapping[str, Mapping[str, int]]) -> str:
    """The split of the source that holds the images of one of the record.

    Others are ``train``, of which images were held out, and ``test``, which also served as ``val``.
    """
    others = ["test", "train"] if split == "val" and "test" not in record.images else ["train"]
    candidates = [own for own in (split, *others) if own in places]
    paths = [image.path for image in record.images[split]]
    return max(candidates, key=lambda own: sum(path in places[own] for path in paths))


def _find_split(
    source: FileSource,
    split: str,
    own: str,
    record: SplitRecord,
    places: Mapping[str, int],
    new: dict[str, None],
    image_keys: ImageKeys | None,
    changes: Changes,
) -> Indices:
    """Positions of the images of one recorded split; takes renamed ones out of ``new``."""
    images = record.images[split]
    trained = record.trained if split != "train" else set()
    now: dict[str, str] = {}
    if image_keys is not None:
        present = [image.path for image in images if image.path in places]
        now = dict(zip(present, image_keys.of(own, [places[p] for p in present]), strict=True))
    labels = source.labels(own)
    positions: list[int] = []
    same: dict[int, RecordedImage] = {}  # files of the same content, by position
    elsewhere: dict[str, list[str]] | None = None
    for image in images:
        path, key = image.path, image.key
        if path in places and (not key or now.get(path, key) == key):
            positions.append(places[path])
            same[places[path]] = image
            continue
        if elsewhere is None:  # contents of new files are needed only where one is missing
            elsewhere = {}
            if image_keys is not None:
                contents = image_keys.of(own, [places[other] for other in new])
                for other, content in zip(new, contents, strict=True):
                    elsewhere.setdefault(content, []).append(other)
        if elsewhere.get(key):
            other = elsewhere[key].pop(0)
            del new[other]
            positions.append(places[other])
            same[places[other]] = image
            kept = labels is None or labels[places[other]] == image.label
            (changes.renamed if kept else changes.changed).setdefault(split, []).append(other)
        elif path in places and now.get(path) not in trained:
            changes.changed.setdefault(split, []).append(path)
            positions.append(places[path])
        else:
            changes.removed.setdefault(split, []).append(path)
    if image_keys is not None and isinstance(source, AnnotatedSource):
        anew = _annotated_anew(source, own, same)
        if anew:
            changes.annotated[split] = anew
    return np.array(positions, dtype=np.int64)


def _annotated_anew(
    source: AnnotatedSource, split: str, images: Mapping[int, RecordedImage]
) -> list[str]:
    """Of images, by position, those whose annotations are not what was recorded, if anything was.

    Runs of earlier versions wrote no annotations down.
    """
    known = [index for index, image in images.items() if image.annotation]
    return [
        source.path(split, index)
        for index, now in zip(known, annotations_of(source, split, known), strict=True)
        if now != images[index].annotation
    ]


def add_new(
    splits: dict[str, Selection],
    source: FileSource,
    added: Iterable[str],
    config: SplitConfig,
    image_keys: ImageKeys | None,
) -> None:
    """Let new files join the splits of a record, each as its key says; no other image moves.

    Args:
        splits: of the record; changed in place.
        source: holds the files.
        added: their paths.
        config: the shares.
        image_keys: None lets all new files train.
    """
    wanted = set(added)
    for own, count in source.info.splits.items():
        fresh = [index for index in range(count) if source.path(own, index) in wanted]
        parts = {own: fresh}
        shares = held_out_shares(source, config)
        if own == "train" and image_keys is not None and shares:
            numbers = image_keys.numbers(own, fresh)
            draws = uniform(keys(config.seed, numbers.view(np.int64)), 0)
            stops = np.cumsum([share for _, share in shares])
            names = [*(split for split, _ in shares), "train"]
            parts = {name: [] for name in names}
            for index, place in zip(
                fresh, np.searchsorted(stops, draws, side="right"), strict=True
            ):
                parts[names[place]].append(index)
        for split, indices in parts.items():
            if split in splits:
                together = np.concatenate([splits[split].positions, indices]).astype(np.int64)
                splits[split] = Selection(source, splits[split].split, np.sort(together))
