"""``split.json``: which images a run trained, validated and tested on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from castling.data.keys import ImageKeys
from castling.data.registry import FileSource, Source
from castling.data.splits import Selection
from castling.utils.files import write_text
from castling.utils.text import few

SPLIT_FILE = "split.json"
_FORMAT = "castling split 1"

#: split → class → path → key; the key is empty where images are not known by their content.
Images = Mapping[str, Mapping[str, Mapping[str, str]]]


@dataclass(frozen=True)
class SplitRecord:
    """The images of every split of a run.

    Attributes:
        source: what a person calls the source.
        classes: names in the order of the labels.
        sizes: number of images by split; without ``test`` where those are the images of val.
        images: the files by split and class; empty for a source whose images cannot change.
    """

    source: str
    classes: list[str]
    sizes: dict[str, int]
    images: Images = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Of the whole content; equal records have equal ones."""
        return hashlib.blake2b(self.to_json().encode(), digest_size=16).hexdigest()

    @property
    def trained(self) -> set[str]:
        """Keys of the images trained on; empty where images are not known by their content."""
        found = {key for files in self.images.get("train", {}).values() for key in files.values()}
        return found - {""}

    def to_json(self) -> str:
        """One line for every image."""
        values = {
            "format": _FORMAT,
            "source": self.source,
            "classes": self.classes,
            "sizes": self.sizes,
            "images": self.images,
        }
        return json.dumps(values, indent=0, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> None:
        """Write ``split.json`` into a run's folder, whole."""
        write_text(folder / SPLIT_FILE, self.to_json())


def read_split_record(folder: Path) -> SplitRecord | None:
    """The record in a run's folder; None where there is none.

    Raises:
        ValueError: the file is damaged or of a newer version; it is named.
    """
    path = folder / SPLIT_FILE
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != _FORMAT:
            raise ValueError(f"its format is {values['format']!r}, not {_FORMAT!r}")
        images = {
            split: {name: dict(files) for name, files in classes.items()}
            for split, classes in values["images"].items()
        }
        return SplitRecord(values["source"], list(values["classes"]), values["sizes"], images)
    except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a whole record of a split ({type(error).__name__}: {error}); put back "
            "a copy, or remove it: the run's images are drawn anew then"
        ) from error


def record_split(
    source: Source, name: str, selections: Mapping[str, Selection], image_keys: ImageKeys | None
) -> SplitRecord:
    """What :class:`SplitRecord` keeps of chosen images.

    Args:
        source: holds the images.
        name: what a person calls it.
        selections: by split.
        image_keys: by content, of every image; None keeps names alone.
    """
    own = {
        split: chosen
        for split, chosen in selections.items()
        if split != "test" or chosen is not selections["val"]
    }
    sizes = {split: len(chosen) for split, chosen in own.items()}
    images: dict[str, dict[str, dict[str, str]]] = {}
    if isinstance(source, FileSource):
        for split, chosen in own.items():
            places = chosen.positions.tolist()
            found = [""] * len(places)
            if image_keys is not None and image_keys.by == "content":
                found = image_keys.of(chosen.split, places)
            labels = source.labels(chosen.split)
            files: dict[str, dict[str, str]] = {}
            for place, key in zip(places, found, strict=True):
                kind = "" if labels is None else source.info.classes[labels[place]]
                files.setdefault(kind, {})[source.path(chosen.split, place)] = key
            images[split] = files
    return SplitRecord(name, source.info.classes, sizes, images)


def leaks(record: SplitRecord) -> list[str]:
    """Notes about copies of one file: of training images in other splits, or in several classes."""
    notes = []
    trained = record.trained
    for split, classes in record.images.items():
        rows = [(path, key) for files in classes.values() for path, key in files.items()]
        copies = [path for path, key in rows if key in trained]
        if copies and split != "train":
            notes.append(
                f"{len(copies)} {split} images are copies of training images, so that the figures "
                f"of {split} will be too good: {few(copies, 3)}; remove them"
            )
    owners: dict[str, set[str]] = {}
    paths: dict[str, str] = {}
    for classes in record.images.values():
        for name, files in classes.items():
            for path, key in files.items():
                if key:
                    owners.setdefault(key, set()).add(name)
                    paths.setdefault(key, path)
    double = [paths[key] for key, names in owners.items() if len(names) > 1]
    if double:
        notes.append(f"{len(double)} images lie in more than one class: {few(double, 3)}")
    return notes
