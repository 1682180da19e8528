"""Which files of a folder are COCO's annotations, and of which split."""

from __future__ import annotations

import posixpath

from castling.data.errors import DataError
from castling.data.files import FileStore
from castling.data.split_folders import split_of

#: Other files that come with COCO and its exports; they hold no boxes.
_OTHER = ("captions", "panoptic", "person_keypoints", "stuff", "image_info", "classes")
_PEEK = 1 << 16  # bytes of a file's beginning by which it is known
_SIGNS = (b'"images"', b'"annotations"', b'"categories"')


def find_annotations(store: FileStore) -> tuple[dict[str, str], list[str]]:
    """The annotation file of each split, by name; those that are called like no split train.

    Raises:
        DataError: there is none, or there are several for one split.
    """
    files = store.listing().files
    named = [file for file in files if file.lower().endswith(".json") and not _is_other(file)]
    instances = [file for file in named if "instances" in posixpath.basename(file).lower()]
    found: dict[str, list[str]] = {}
    for file in instances or [file for file in named if _looks_like_coco(store, file)]:
        stem, folder = posixpath.basename(file), posixpath.basename(posixpath.dirname(file))
        found.setdefault(split_of(stem) or split_of(folder) or "train", []).append(file)
    where = store.describe("")
    if not found:
        raise DataError(
            f"no COCO annotation file in {where}: put instances_train.json (and "
            "instances_val.json) there or into annotations/, or name it with source.train"
        )
    for split, several in found.items():
        if len(several) > 1:
            raise DataError(
                f"several files may be the annotations of the {split} split in {where}: "
                f"{', '.join(several[:4])}; name one of them with source.{split}"
            )
    notes = []
    if "train" not in found and len(found) == 1:
        (split,) = found
        notes.append(f"there are {split} annotations only, so they serve for training")
        found = {"train": found[split]}
    return {split: files[0] for split, files in found.items()}, notes


def is_coco(store: FileStore) -> bool:
    """Whether there are COCO annotation files."""
    try:
        find_annotations(store)
    except DataError as error:
        return str(error).startswith("several")
    return True


def _is_other(file: str) -> bool:
    return posixpath.basename(file).lower().startswith(_OTHER)


def _looks_like_coco(store: FileStore, file: str) -> bool:
    with store.open(file) as stream:
        head = stream.read(_PEEK)
        stream.seek(max(0, stream.seek(0, 2) - _PEEK))
        head += stream.read()
    return sum(sign in head for sign in _SIGNS) + (b'"bbox"' in head) >= 2
