"""``split.json``: which images a run trained, validated and tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from castling.data.keys import ImageKeys, annotations_of
from castling.data.registry import AnnotatedSource, FileSource, Source
from castling.data.splits import Selection
from castling.utils.files import parse_json, write_text
from castling.utils.text import few

SPLIT_FILE = "split.json"
_FORMAT = "castling split 1"


@dataclass(frozen=True, slots=True)
class RecordedImage:
    """A file of a split.

    Attributes:
        path: below the source's folder.
        label: its class; -1 without one.
        key: digest of its content; empty where images are known by their names alone.
        annotation: digest of its annotation; empty without one, and in records of old.
    """

    path: str
    label: int
    key: str
    annotation: str = ""

    def row(self) -> list[str | int]:
        """As ``split.json`` has it; without an empty annotation, as records of old."""
        row: list[str | int] = [self.path, self.label, self.key]
        return [*row, self.annotation] if self.annotation else row


@dataclass(frozen=True)
class SplitRecord:
    """The images of every split of a run.

    Attributes:
        source: what a person calls the source.
        classes: names in the order of the labels.
        sizes: number of images by split; without ``test`` where those are the images of val.
        images: the files of every split, in order; empty for a source whose images cannot change.
        unused: files that were there and are in no split, because of a subset.
        earlier: keys of images that were trained on before the source changed.
    """

    source: str
    classes: list[str]
    sizes: dict[str, int]
    images: dict[str, list[RecordedImage]] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    earlier: list[str] = field(default_factory=list)

    @property
    def digest(self) -> str:
        """Of the whole content; equal records have equal ones."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    @property
    def trained(self) -> set[str]:
        """Keys of the images trained on; empty where images are not known by their content."""
        return {image.key for image in self.images.get("train", ())} - {""} | set(self.earlier)

    def to_json(self) -> str:
        """One line for every image."""
        head = {
            "format": _FORMAT,
            "source": self.source,
            "classes": self.classes,
            "sizes": self.sizes,
            "unused": self.unused,
            "earlier": self.earlier,
        }
        lines = [f"{_json(name)}: {_json(value)}" for name, value in head.items()]
        splits = [
            f"{_json(split)}: [\n" + ",\n".join(_json(image.row()) for image in images) + "\n]"
            for split, images in self.images.items()
        ]
        lines.append('"images": {\n' + ",\n".join(splits) + "\n}")
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, folder: Path) -> None:
        """Write ``split.json`` into a run's folder, whole."""
        write_text(folder / SPLIT_FILE, self.to_json())


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def read_split_record(folder: Path) -> SplitRecord | None:
    """The record in a run's folder; None where there is none.

    Raises:
        ValueError: the file is damaged or of a newer version; it is named.
    """
    path = folder / SPLIT_FILE
    if not path.is_file():
        return None
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise ValueError(f"its format is {values['format']!r}, not {_FORMAT!r}")
        images = {
            str(split): [
                RecordedImage(str(path), int(label), *map(str, keys)) for path, label, *keys in rows
            ]
            for split, rows in values["images"].items()
        }
        sizes = {str(split): int(count) for split, count in values["sizes"].items()}
        if not sizes.get("train") or any(len(images[split]) != sizes[split] for split in images):
            raise ValueError("its sizes do not fit its images")
        return SplitRecord(
            source=str(values["source"]),
            classes=list(values["classes"]),
            sizes=sizes,
            images=images,
            unused=list(values["unused"]),
            earlier=list(values["earlier"]),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a whole record of a split ({type(error).__name__}: {error}); put a "
            "copy back. Without the file, the run's images would be drawn anew"
        ) from error


def record_split(
    source: Source,
    name: str,
    selections: Mapping[str, Selection],
    image_keys: ImageKeys | None,
    before: SplitRecord | None = None,
) -> SplitRecord:
    """What :class:`SplitRecord` keeps of chosen images.

    Args:
        source: holds the images.
        name: what a person calls it.
        selections: by split.
        image_keys: by content, of every image; None keeps names alone.
        before: the record of the same run from before the source changed.
    """
    own = {
        split: chosen
        for split, chosen in selections.items()
        if split != "test" or chosen is not selections["val"]
    }
    sizes = {split: len(chosen) for split, chosen in own.items()}
    images: dict[str, list[RecordedImage]] = {}
    if isinstance(source, FileSource):
        for split, chosen in own.items():
            places = chosen.positions.tolist()
            found = [""] * len(places)
            if image_keys is not None and image_keys.by == "content":
                found = image_keys.of(chosen.split, places)
            labels = chosen.labels
            numbers = [-1] * len(places) if labels is None else labels.tolist()
            annotations = [""] * len(places)
            if any(found) and isinstance(source, AnnotatedSource):
                annotations = annotations_of(source, chosen.split, places)
            images[split] = [
                RecordedImage(source.path(chosen.split, place), label, key, annotation)
                for place, label, key, annotation in zip(
                    places, numbers, found, annotations, strict=True
                )
            ]
    record = SplitRecord(name, source.info.classes, sizes, images, _unused(source, own.values()))
    earlier = set() if before is None else before.trained - record.trained
    return replace(record, earlier=sorted(earlier))


def _unused(source: Source, selections: Iterable[Selection]) -> list[str]:
    if not isinstance(source, FileSource):
        return []
    used: dict[str, set[int]] = {}
    for chosen in selections:
        used.setdefault(chosen.split, set()).update(chosen.positions.tolist())
    return [
        source.path(split, index)
        for split, count in source.info.splits.items()
        for index in range(count)
        if index not in used.get(split, ())
    ]


def leaks(record: SplitRecord) -> list[str]:
    """Notes about copies of one file: of training images in other splits, or in several classes."""
    notes = []
    trained = record.trained
    for split, images in record.images.items():
        copies = [image.path for image in images if image.key in trained]
        if copies and split != "train":
            notes.append(
                f"{split} images that are copies of training images: {len(copies)} "
                f"({few(copies, 3)}); remove them, or the figures of {split} will be too good"
            )
    first: dict[str, RecordedImage] = {}
    double: dict[str, str] = {}
    for images in record.images.values():
        for image in images:
            if image.key and first.setdefault(image.key, image).label != image.label:
                double[image.key] = f"{first[image.key].path} and {image.path}"
    if double:
        notes.append(f"images in more than one class: {len(double)} ({few(double.values(), 3)})")
    return notes
