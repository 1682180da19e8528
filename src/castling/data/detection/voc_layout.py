"""Which annotation files, images and splits there are in a folder of Pascal VOC's format."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence

from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.formats import is_image
from castling.data.split_folders import split_of


def voc_files(store: FileStore) -> list[str]:
    """All XML files, where the first of them are annotations."""
    found = [file for file in store.listing().files if file.lower().endswith(".xml")]
    return found if any(_looks_like_voc(store, file) for file in found[:5]) else []


class VocImages:
    """Image files by name without folder and ending."""

    def __init__(self, files: Iterable[str]) -> None:
        self.by_stem: dict[str, list[str]] = defaultdict(list)
        for file in filter(is_image, files):
            self.by_stem[stem(file)].append(file)

    def of(self, annotation: str, named: str) -> str | None:
        """The image of an annotation file: of the same name, or the one it names; the nearest."""
        found = self.by_stem.get(stem(annotation)) or self.by_stem.get(stem(named), [])
        return max(found, key=lambda file: _fit(file, annotation, named), default=None)

    def without(self, annotations: Iterable[str], used: Collection[str]) -> list[str]:
        """The images that no annotation file is about."""
        annotated = set(map(stem, annotations))
        return sorted(
            file
            for name, files in self.by_stem.items()
            if name not in annotated
            for file in files
            if file not in used
        )


def _fit(file: str, annotation: str, named: str) -> tuple[bool, int, bool, str]:
    """How well an image of the right name fits an annotation; VOC's masks have the same names."""
    *folders, name = file.split("/")
    others = annotation.split("/")[:-1]
    usual = folders == others or (folders[-1:] or [""])[0].lower() in ("jpegimages", "images")
    stated = posixpath.basename(named.replace("\\", "/"))
    return name == stated, len({*folders} & {*others}), usual, file


def stem(file: str) -> str:
    """Name of a file without folder and ending."""
    return posixpath.basename(file.replace("\\", "/")).rpartition(".")[0] or file


def voc_splits(
    store: FileStore, names: Sequence[str], faults: Faults, task: str = "Main"
) -> dict[str, list[str]]:
    """Annotation files by split: the lists in ``ImageSets``, or else folders of their names.

    Args:
        store: the files.
        names: of all annotation files.
        faults: takes entries and annotations that are left out.
        task: the folder of the lists.
    """
    files = set(store.listing().files)
    found: dict[str, list[str]] = {}
    roots = sorted({posixpath.dirname(posixpath.dirname(name)) for name in names})
    lists = {
        split: [
            (root, file)
            for root in roots
            if (file := posixpath.join(root, "ImageSets", task, f"{split}.txt")) in files
        ]
        for split in ("train", "trainval", "val", "test")
    }
    if lists["train"] or lists["trainval"]:
        return _listed(store, lists, names, faults)
    for name in names:
        folders = posixpath.dirname(name).split("/")
        split = next(filter(None, map(split_of, folders)), "train")
        found.setdefault(split, []).append(name)
    order = [split for split in ("train", "val", "test") if split in found]
    return {split: found[split] for split in order}


def _listed(
    store: FileStore,
    lists: dict[str, list[tuple[str, str]]],
    names: Sequence[str],
    faults: Faults,
) -> dict[str, list[str]]:
    """Annotation files by split, as lists (folder, file) say; trainval without val may train."""
    found: dict[str, list[str]] = {}
    by_place = {(posixpath.dirname(posixpath.dirname(name)), stem(name)): name for name in names}
    for split in ("val", "test", "train" if lists["train"] else "trainval"):
        missing = []
        for root, file in lists[split]:
            with store.open(file) as stream:
                rows = stream.read().decode("utf-8", "replace").split("\n")
            for row in filter(None, (row.split() for row in rows)):
                name = by_place.get((root, row[0]))
                if name is None:
                    missing.append(f"{row[0]} of {file}")
                else:
                    found.setdefault(split, []).append(name)
        if missing and split in ("val", "test") and split not in found:
            faults.add("empty_list", lists[split][0][1])
        else:
            faults.add_all("unannotated", missing)
    if "trainval" in found:
        validation = set(found.get("val", ()))
        found["train"] = [name for name in found.pop("trainval") if name not in validation]
    used = {name for each in found.values() for name in each}
    faults.add_all("unlisted", (name for name in names if name not in used))
    return {split: found[split] for split in ("train", "val", "test") if split in found}


def _looks_like_voc(store: FileStore, file: str) -> bool:
    with store.open(file) as stream:
        return b"<annotation" in stream.read(4096)
