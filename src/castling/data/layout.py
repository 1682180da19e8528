"""Classes and splits from the paths of image files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from castling.data.decode import IMAGE_ENDINGS
from castling.data.errors import DataError
from castling.data.files import FileStore

_SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Layout:
    """What the paths say.

    Attributes:
        classes: readable names, in the order of the labels (sorted by folder).
        splits: ``train`` and perhaps ``val`` and ``test``, each a list of (file, label).
        notes: what a person should know about the reading.
    """

    classes: list[str]
    splits: dict[str, list[tuple[str, int]]]
    notes: tuple[str, ...]


def read_layout(store: FileStore) -> Layout:
    """Find splits and classes: ``train/CLASS/FILE``, ``val/…``, ``test/…``, or ``CLASS/FILE``.

    Everything may lie in one top folder. ``classes.json`` beside the splits may give readable
    names: an object from folder to name, or ``{"classes": [...]}`` with names or
    ``{"wnid", "name"}`` objects.

    Raises:
        DataError: no images, a single class, an empty class, or classes that differ between splits.
    """
    files, folders = store.listing()
    top, files, folders = _enter_top_folder(files, folders)
    where = store.describe(top.rstrip("/")) if top else store.describe("").rstrip(":/")
    names = _readable_names(store, f"{top}classes.json") if "classes.json" in files else {}

    split_folders = _split_folders(folders, where)
    notes: list[str] = []
    if not split_folders:
        split_folders = {"train": ""}
    else:
        others = sorted(
            {folder for folder in folders if "/" not in folder} - set(split_folders.values())
        )
        if others:
            notes.append(f"ignored beside the splits: {', '.join(others[:5])}")

    found: dict[str, dict[str, list[str]]] = {}
    ignored: Counter[str] = Counter()
    for split, folder in split_folders.items():
        found[split] = _classes_below(folder, files, folders, ignored)
        _check_split(found[split], split, folder, store, top, where)
    if ignored.total():
        kinds = ", ".join(sorted(ignored)[:5])
        notes.append(
            f"{ignored.total()} files that are not images in a class folder were ignored ({kinds})"
        )

    class_folders = sorted(found["train"])
    _check_same_classes(found, split_folders, where)
    labels = {folder: label for label, folder in enumerate(class_folders)}
    splits = {
        split: [(top + file, labels[name]) for name in class_folders for file in classes[name]]
        for split, classes in found.items()
    }
    return Layout(_label_names(class_folders, names, where), splits, tuple(notes))


def _enter_top_folder(files: list[str], folders: list[str]) -> tuple[str, list[str], list[str]]:
    """Step into a lone folder that holds everything; return its name with ``/``, and the rest."""
    top = ""
    while True:
        heads = [folder for folder in folders if "/" not in folder]
        loose = any("/" not in file and _is_image(file) for file in files)
        if len(heads) != 1 or loose or heads[0].lower() in _SPLITS:
            return top, files, folders
        prefix = heads[0] + "/"
        if not any(folder.startswith(prefix) for folder in folders):
            return top, files, folders
        top += prefix
        files = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
        folders = [folder.removeprefix(prefix) for folder in folders if folder.startswith(prefix)]


def _split_folders(folders: list[str], where: str) -> dict[str, str]:
    """Folder of each split, or nothing when the top folders are classes."""
    heads = [folder for folder in folders if "/" not in folder]
    splits: dict[str, str] = {}
    for head in heads:
        split = _SPLITS.get(head.lower())
        if split is None:
            continue
        if split in splits:
            raise DataError(f"{where} has both {splits[split]}/ and {head}/; keep one of them")
        splits[split] = head
    if "train" in splits:
        return splits
    if splits and len(splits) == len(heads):
        raise DataError(f"{where} has {', '.join(sorted(splits.values()))} but no train folder")
    return {}


def _classes_below(
    folder: str, files: list[str], folders: list[str], ignored: Counter[str]
) -> dict[str, list[str]]:
    """Images of every class folder directly below ``folder`` (at any depth inside the class)."""
    prefix = f"{folder}/" if folder else ""
    below = (name.removeprefix(prefix) for name in folders if name.startswith(prefix))
    classes: dict[str, list[str]] = {name: [] for name in below if "/" not in name}
    for file in files:
        if not file.startswith(prefix):
            continue
        name, separator, _ = file.removeprefix(prefix).partition("/")
        if separator and _is_image(file):
            classes[name].append(file)
        elif separator or prefix or _is_image(file):
            ignored[file.rpartition("/")[2].rpartition(".")[2] if "." in file else "no ending"] += 1
    return classes


def _check_split(
    classes: dict[str, list[str]], split: str, folder: str, store: FileStore, top: str, where: str
) -> None:
    place = store.describe(top + folder) if folder else where
    if not any(classes.values()):
        raise DataError(
            f"no images in folders of classes below {place}; put each image into a folder named by "
            "its class, such as train/cat/1.jpg"
        )
    empty = sorted(name for name, images in classes.items() if not images)
    if empty:
        paths = [store.describe("/".join(filter(None, (top + folder, name)))) for name in empty[:5]]
        raise DataError(
            f"{len(empty)} of the classes of the {split} split have no images: {', '.join(paths)}; "
            "add images or remove the folders"
        )
    if len(classes) < 2:
        raise DataError(
            f"{place} has one class only ({next(iter(classes))}); classification needs two or more"
        )


def _check_same_classes(
    found: dict[str, dict[str, list[str]]], split_folders: dict[str, str], where: str
) -> None:
    for split, classes in found.items():
        complaints = []
        for reason, names in (
            (f"only in {split_folders['train']}/", set(found["train"]) - set(classes)),
            (f"only in {split_folders[split]}/", set(classes) - set(found["train"])),
        ):
            if names:
                shown = ", ".join(sorted(names)[:5]) + (", …" if len(names) > 5 else "")
                complaints.append(f"{reason}: {shown}")
        if complaints:
            raise DataError(
                f"the classes of the splits in {where} differ ({'; '.join(complaints)}); every "
                "split needs a folder for every class"
            )


def _readable_names(store: FileStore, file: str) -> dict[str, str]:
    """Readable name of each class folder, as far as ``classes.json`` gives one."""
    with store.open(file) as stream:
        try:
            content = json.load(stream)
        except ValueError as error:
            raise DataError(f"{store.describe(file)} is not valid JSON: {error}") from error
    if isinstance(content, dict) and isinstance(content.get("classes"), list):
        content = content["classes"]
    pairs: list[tuple[Any, Any]] = [(None, None)]
    if isinstance(content, list):
        pairs = [_pair(entry) for entry in content]
    elif isinstance(content, dict):
        pairs = list(content.items())
    if not all(isinstance(folder, str) and isinstance(name, str) for folder, name in pairs):
        raise DataError(
            f"{store.describe(file)} must hold an object from folder to name, or a list "
            '"classes" of names or of objects with "wnid" (or "folder") and "name"'
        )
    return dict(pairs)


def _pair(entry: Any) -> tuple[Any, Any]:
    """Folder and name of one entry of the list form."""
    if isinstance(entry, dict):
        return entry.get("wnid", entry.get("folder")), entry.get("name")
    return entry, entry


def _label_names(folders: list[str], names: dict[str, str], where: str) -> list[str]:
    unknown = sorted(set(names) - set(folders))
    if names and len(unknown) == len(names):
        raise DataError(
            f"classes.json in {where} names none of the class folders (it has {unknown[0]}, the "
            f"folders are {folders[0]}, …)"
        )
    labels = [names.get(folder, folder) for folder in folders]
    counts = Counter(labels)
    # ImageNet has two cranes; a prediction must say which.
    return [
        f"{label} ({folder})" if counts[label] > 1 else label
        for folder, label in zip(folders, labels, strict=True)
    ]


def _is_image(file: str) -> bool:
    return file.rpartition(".")[2].lower() in IMAGE_ENDINGS
