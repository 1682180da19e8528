"""Classes and splits from the paths of image files."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any

from castling.data.errors import DataError
from castling.data.files import FileStore
from castling.data.formats import is_image
from castling.data.split_folders import OR_BOXES, SPLIT_NAMES, LayoutOption, find_splits
from castling.utils.text import printable


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


def read_layout(store: FileStore, layout: LayoutOption = "auto") -> Layout:
    """Find splits and classes: ``train/CLASS/FILE``, ``val/…``, ``test/…``, or ``CLASS/FILE``.

    Everything may lie in one top folder. ``classes.json`` beside the splits may give readable
    names: an object from folder to name, or ``{"classes": [...]}`` with names or
    ``{"wnid", "name"}`` objects.

    Args:
        store: the files.
        layout: whether the top folders are ``splits`` or ``classes``; ``auto`` decides by what lies
            in them, see :func:`castling.data.split_folders.find_splits`.

    Raises:
        DataError: no images, a single class, an empty class, classes that differ between splits,
            folders that may be splits or classes, or a class whose name is not UTF-8.
    """
    listing = store.listing()
    notes = listing.notes
    top, files, folders = _enter_top_folder(listing.files, listing.folders)
    where = store.describe(top.rstrip("/"))
    names = _readable_names(store, f"{top}classes.json") if "classes.json" in files else {}

    split_folders, more = find_splits(files, folders, layout, where)
    notes += more
    found: dict[str, dict[str, list[str]]] = {}
    ignored: list[str] = []
    for split, folder in split_folders.items():
        found[split] = _classes_below(folder, files, folders, ignored)
    used = (top + file for classes in found.values() for each in classes.values() for file in each)
    copies, more = listing.without_copies(used)
    notes += more
    for split, classes in found.items():
        if copies:
            for name, each in classes.items():
                classes[name] = [file for file in each if top + file not in copies]
        _check_split(classes, split, split_folders[split], store, top, where)
    if ignored:
        notes.append(_ignored_note([top + file for file in ignored]))

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
        loose = any("/" not in file and is_image(file) for file in files)
        if len(heads) != 1 or loose or heads[0].lower() in SPLIT_NAMES:
            return top, files, folders
        prefix = heads[0] + "/"
        if not any(folder.startswith(prefix) for folder in folders):
            return top, files, folders
        top += prefix
        files = [file.removeprefix(prefix) for file in files if file.startswith(prefix)]
        folders = [folder.removeprefix(prefix) for folder in folders if folder.startswith(prefix)]


def _classes_below(
    folder: str, files: list[str], folders: list[str], ignored: list[str]
) -> dict[str, list[str]]:
    """Images of every class folder directly below ``folder`` (at any depth inside the class)."""
    prefix = f"{folder}/" if folder else ""
    below = (name.removeprefix(prefix) for name in folders if name.startswith(prefix))
    classes: dict[str, list[str]] = {name: [] for name in below if "/" not in name}
    for file in files:
        if not file.startswith(prefix):
            continue
        name, separator, _ = file.removeprefix(prefix).partition("/")
        if separator and is_image(file):
            classes[name].append(file)
        elif separator or prefix or is_image(file):
            ignored.append(file)
    return classes


def _ignored_note(files: list[str]) -> str:
    """How many files were ignored, of which kinds, and the name of the first."""
    first = printable(min(files))
    if len(files) == 1:
        return f"1 file was ignored: it is no image, or lies in no class folder: {first}"
    names = [file.rpartition("/")[2] for file in files]
    kinds = {name.rpartition(".")[2] if "." in name else "no ending" for name in names}
    return (
        f"{len(files)} files were ignored: they are no images, or lie in no class folder "
        f"({', '.join(map(printable, sorted(kinds)[:5]))}); the first is {first}"
    )


def _check_split(
    classes: dict[str, list[str]], split: str, folder: str, store: FileStore, top: str, where: str
) -> None:
    place = store.describe(top + folder) if folder else where
    if not any(classes.values()):
        raise DataError(
            f"no images in folders of classes below {place}; put each image into a folder named by "
            f"its class, such as train/cat/1.jpg{OR_BOXES}"
        )
    unprintable = sorted(name for name in classes if printable(name) != name)
    if unprintable:
        raise DataError(
            f"the name of the class folder {place}/{printable(unprintable[0])} is not UTF-8 or "
            "holds control characters, so no file could name the class; rename the folder"
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
            f"{OR_BOXES}"
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
        except (ValueError, RecursionError) as error:
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
    for label in labels:
        if printable(label) != label:
            raise DataError(
                f"classes.json in {where} names a class {printable(label)!r}: control characters "
                "and halves of characters cannot be written as a class"
            )
    counts = Counter(labels)
    # ImageNet has two cranes; a prediction must say which.
    return [
        f"{label} ({folder})" if counts[label] > 1 else label
        for folder, label in zip(folders, labels, strict=True)
    ]
