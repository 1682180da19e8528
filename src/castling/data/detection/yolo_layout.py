"""Which images, labels, classes and splits there are in a folder of YOLO's format.

By Ultralytics' and Darknet's documentation ``images/train/a.jpg`` belongs to
``labels/train/a.txt``, and ``data.yaml`` names classes and folders.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.formats import is_image
from castling.data.split_folders import split_of
from castling.utils.text import first_line

_NAME_FILES = ("classes.txt", "obj.names", "_darknet.labels")
_SETTINGS = ("data.yaml", "dataset.yaml")
_SPLITS = ("train", "val", "test")


@dataclass
class YoloLayout:
    """Where things are.

    Attributes:
        names: of the classes; None where no file says them.
        splits: image files by split.
        labels: label file of every image that has one.
        spare: label files without an image.
    """

    names: list[str] | None
    splits: dict[str, list[str]]
    labels: dict[str, str]
    spare: list[str]


def is_yolo(store: FileStore) -> bool:
    """Whether a file names classes and folders, or text files hold lines of a class and a box."""
    files = store.listing().files
    texts = _texts(files)
    labels = [file for file in texts if _is_label(file)]
    return find_settings(store, files) is not None or any(
        _has_boxes(store, file) for file in (labels or texts)[:5]
    )


def _texts(files: Sequence[str]) -> list[str]:
    """Text files that do not name classes."""
    texts = (file for file in files if file.endswith(".txt"))
    return [file for file in texts if posixpath.basename(file) not in _NAME_FILES]


def _is_label(file: str) -> bool:
    return "labels" in file.split("/")[:-1]


def _has_boxes(store: FileStore, file: str) -> bool:
    with store.open(file) as stream:
        words = stream.read(4096).decode("utf-8-sig", "replace").partition("\n")[0].split()
    try:
        return len(words) >= 5 and all(abs(float(word)) < 1e4 for word in words)
    except ValueError:
        return False


def yolo_layout(store: FileStore, settings: str, faults: Faults) -> YoloLayout:
    """Read the layout of a folder; see the module."""
    files = store.listing().files
    labels = _labels_of(files)
    names: list[str] | None = None
    images = {file for file in files if is_image(file)}
    splits: dict[str, list[str]] = {}
    found = find_settings(store, [settings] if settings else files, faults)
    if found is not None:
        path, values = found
        names = _names(values.get("names"), path, faults)
        splits = _stated_splits(store, values, posixpath.dirname(path), images, faults)
    for file in files if names is None else ():
        if posixpath.basename(file) in _NAME_FILES:
            with store.open(file) as stream:
                lines = stream.read().decode("utf-8-sig", "replace").splitlines()
            names = [line.strip() for line in lines if line.strip()]
            break
    if not splits:
        for file in sorted(images):
            split = next(filter(None, map(split_of, posixpath.dirname(file).split("/"))), "train")
            splits.setdefault(split, []).append(file)
    used = set(labels.values())
    spare = [file for file in _texts(files) if file not in used and _is_label(file)]
    ordered = {split: splits[split] for split in _SPLITS if splits.get(split)}
    listed = {image for each in ordered.values() for image in each}
    return YoloLayout(names, ordered, {i: f for i, f in labels.items() if i in listed}, spare)


def _labels_of(files: Sequence[str]) -> dict[str, str]:
    """Label file of every image that has one: in labels/ for images/, or beside it."""
    known = set(_texts(files))
    found = {}
    for file in filter(is_image, files):
        stem = posixpath.splitext(file)[0] + ".txt"
        parts = stem.split("/")
        if "images" in parts[:-1]:
            last = len(parts) - 2 - parts[-2::-1].index("images")
            other = "/".join([*parts[:last], "labels", *parts[last + 1 :]])
            if other in known:
                found[file] = other
                continue
        if stem in known:
            found[file] = stem
    return found


def find_settings(
    store: FileStore, files: Sequence[str], faults: Faults | None = None
) -> tuple[str, dict[str, Any]] | None:
    """The file that names classes and folders, with its values.

    Args:
        store: the files.
        files: among which it is looked for.
        faults: takes a file of the usual name, or the only one, that cannot be read.
    """
    named = [file for file in files if file.endswith((".yaml", ".yml")) and file.count("/") <= 1]
    for file in sorted(named, key=lambda each: (each.count("/"), each)):
        values: Any = None
        try:
            with store.open(file) as stream:
                values = yaml.safe_load(stream.read())
        except (yaml.YAMLError, ValueError, RecursionError) as error:
            if faults is not None and (file in _SETTINGS or len(named) == 1):
                faults.add("not_names", f"{file}: {first_line(error)}")
        usual = posixpath.basename(file) in _SETTINGS
        if (
            isinstance(values, dict)
            and "names" in values
            and (usual or {"train", "val", "path"} & {*values})
        ):
            return file, values
    return None


def _names(value: Any, file: str, faults: Faults) -> list[str] | None:
    if isinstance(value, dict):
        numbers = sorted(key for key in value if isinstance(key, int))
        if len(numbers) == len(value) and numbers == list(range(len(numbers))):
            value = [value[number] for number in numbers]
    if not isinstance(value, list) or not value or not all(isinstance(e, str | int) for e in value):
        faults.add("not_names", file)
        return None
    names = [str(each) for each in value]
    faults.add_all("double_category", (f"{n} of {file}" for n in set(names) if names.count(n) > 1))
    return names


def _stated_splits(
    store: FileStore, values: dict[str, Any], here: str, images: set[str], faults: Faults
) -> dict[str, list[str]]:
    """Images of the splits that a data.yaml names, as far as its paths lead anywhere."""
    files = set(store.listing().files)
    found: dict[str, list[str]] = {}
    for split in _SPLITS:
        stated = values.get(split)
        for entry in stated if isinstance(stated, list) else [stated]:
            if not isinstance(entry, str):
                continue
            for place in _places(entry, values.get("path"), here):
                if place in files and place.endswith(".txt"):
                    found.setdefault(split, []).extend(_listed(store, place, images, faults))
                    break
                inside = sorted(
                    each for each in images if each.startswith(f"{place}/" * bool(place))
                )
                if inside:
                    found.setdefault(split, []).extend(inside)
                    break
    return {split: list(dict.fromkeys(each)) for split, each in found.items()}


def _places(entry: str, path: Any, here: str) -> list[str]:
    """Where an entry of a data.yaml may point; its root often is on another machine."""
    roots = [here] if not isinstance(path, str) else [posixpath.join(here, path), here]
    places = [posixpath.normpath(posixpath.join(root, entry)) for root in roots]
    bare = entry.lstrip("/")
    while bare.startswith(("../", "./")):
        bare = bare.partition("/")[2]
    places.append(posixpath.normpath(posixpath.join(here, bare)))
    return [place for place in dict.fromkeys(places) if not place.startswith(("..", "/"))]


def _listed(store: FileStore, file: str, images: set[str], faults: Faults) -> list[str]:
    """The images that a text file lists, a line each."""
    with store.open(file) as stream:
        lines = stream.read().decode("utf-8-sig", "replace").splitlines()
    found = []
    for line in filter(None, map(str.strip, lines)):
        places = _places(line, None, posixpath.dirname(file)) + _places(line, None, "")
        known = next((place for place in places if place in images), None)
        if known is None:
            faults.add("no_file", f"{line} of {file}")
        else:
            found.append(known)
    return found
