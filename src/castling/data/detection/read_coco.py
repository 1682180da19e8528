"""COCO's JSON files (cocodataset.org/#format-data), one per split, read with all their faults."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from castling.data.detection.image_files import size_in_header
from castling.data.detection.locate import locate
from castling.data.detection.segmentations import Segmentation, read_segmentation
from castling.data.detection.source import Annotations
from castling.data.detection.table import LARGEST_SIDE, Table, TableBuilder
from castling.data.faults import Faults
from castling.data.files import FileStore

#: Beyond any number of a real file.
_HUGE = 1e300


@dataclass
class _File:
    """One annotation file, its sections as far as they are sound.

    Attributes:
        lost: ids of the other ``images`` and ``categories``, to which annotations may refer.
    """

    name: str
    lost: dict[str, set[Any]]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]
    categories: dict[Any, str]


def read_coco(
    store: FileStore, files: Mapping[str, str], images: str = "", notes: tuple[str, ...] = ()
) -> Annotations:
    """Read the annotation files of all splits.

    Args:
        store: holds images and annotations.
        files: annotation file by split, ``train`` first.
        images: folder of the images, in which ``{split}`` stands for the split; empty: by name.
        notes: taken over.
    """
    faults = Faults()
    counts = {"objects": 0, "images": 0}
    read = {split: _read_file(store, file, faults) for split, file in files.items()}
    classes = _classes(read, faults)
    tables: dict[str, Table] = {}
    for split, file in read.items():
        if file is None:
            continue
        table = _table(store, file, split, classes, images, faults)
        counts["objects"] += len(file.annotations)
        counts["images"] += len(file.images)
        tables[split] = table
    return Annotations(store, classes, tables, faults, counts, notes)


def _read_file(store: FileStore, name: str, faults: Faults) -> _File | None:
    """One file; None where nothing can be made of it."""
    try:
        with store.open(name) as stream:
            content = json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        faults.add("not_whole", f"{store.describe(name)}: {error}")
        return None
    if not isinstance(content, dict):
        faults.add("not_whole", f"{store.describe(name)} holds no object but a {_kind(content)}")
        return None
    sections: dict[str, list[dict[str, Any]]] = {}
    lost: dict[str, set[Any]] = {"images": set(), "categories": set()}
    for section in ("images", "annotations", "categories"):
        entries = content.get(section)
        if not isinstance(entries, list):
            faults.add("no_section", f"{name}: {section}")
            continue
        sound = [each for each in entries if isinstance(each, dict) and _complete(each, section)]
        if len(sound) < len(entries):
            bad = next(each for each in entries if each not in sound)
            text = f"{name}: {section} such as {json.dumps(bad)[:60]}"
            faults.add("no_section", text, len(entries) - len(sound))
            if section in lost:
                ids = (each.get("id") for each in entries if isinstance(each, dict))
                lost[section] = {each for each in ids if _is_id(each)} - {e["id"] for e in sound}
        sections[section] = sound
    if len(sections) < 3:
        return None
    categories: dict[Any, str] = {}
    for each in sections["categories"]:
        key, label = each["id"], str(each["name"])
        if key in categories or label in categories.values():
            faults.add("double_category", f"{label} ({key}) of {name}")
        categories.setdefault(key, label)
    return _File(name, lost, sections["images"], sections["annotations"], categories)


def _complete(entry: dict[str, Any], section: str) -> bool:
    """Whether an entry has the fields without which it means nothing."""
    if section == "annotations":
        return all(_is_id(entry.get(field)) for field in ("image_id", "category_id"))
    text = entry.get("file_name" if section == "images" else "name")
    return _is_id(entry.get("id")) and isinstance(text, str) and bool(text)


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return {list: "list", str: "text", type(None): "null"}.get(type(value), "number")


def _classes(read: Mapping[str, _File | None], faults: Faults) -> list[str]:
    """Names in the order of the training file's ids, which are numbers with or without gaps."""
    for file in read.values():  # train comes first
        if file is not None:
            numbered = sorted(file.categories, key=lambda key: (isinstance(key, str), key))
            return list(dict.fromkeys(file.categories[key] for key in numbered))
    return []


def _table(
    store: FileStore, file: _File, split: str, classes: list[str], images: str, faults: Faults
) -> Table:
    folder = images.format(split=split) if images else None
    builder = TableBuilder("sides", "annotation", faults, training=split == "train")
    places: dict[Any, int] = {}
    found = locate(
        store.listing().files, [each["file_name"] for each in file.images], split, folder
    )
    ids: set[Any] = set()
    for entry, path in zip(file.images, found, strict=True):
        if entry["id"] in ids:
            faults.add("double_image_id", f"{entry['id']} ({entry['file_name']}) of {file.name}")
            continue
        ids.add(entry["id"])
        if path is None:
            faults.add("no_file", f"{entry['file_name']} of {file.name}")
            continue
        size = _stated_size(entry)
        if size is None:
            faults.add("no_size", f"{entry['file_name']} of {file.name}")
            size = size_in_header(store, path)
        places[entry["id"]] = builder.add_image(path, size, entry["file_name"])
    ids |= file.lost["images"]  # reported already
    numbers = {name: label for label, name in enumerate(classes)}
    labels = {key: numbers.get(name) for key, name in file.categories.items()}
    known: set[int] = set()
    spare = 1 + max(
        (each["id"] for each in file.annotations if _is_number(each.get("id"))), default=0
    )
    for entry in file.annotations:
        number: Any = entry.get("id")
        what = f"annotation {number}"
        image, label = places.get(entry["image_id"]), labels.get(entry["category_id"])
        if image is None:
            if entry["image_id"] not in ids:
                faults.add("unknown_image", f"{what} of image {entry['image_id']}")
            continue
        where = f"{what} of {builder.origins[image]}"
        if label is None:
            if entry["category_id"] not in file.lost["categories"]:
                faults.add("unknown_category", f"{where}: category {entry['category_id']}")
            continue
        if not _is_number(number) or number in known:
            if number is not None:
                faults.add("double_object_id", where)
            number, spare = spare, spare + 1
        known.add(number)
        _add_object(builder, entry, image, number, label, where)
    return builder.build()


def _add_object(
    builder: TableBuilder, entry: dict[str, Any], image: int, number: int, label: int, where: str
) -> None:
    size, faults = builder.sizes[image], builder.faults
    crowd = bool(entry.get("iscrowd", 0))
    mask: Segmentation | None = None
    if all(size):
        mask, fault = read_segmentation(entry.get("segmentation"), size)
        if fault:
            faults.add(fault, where)
            return
    if crowd and not isinstance(mask, dict):
        faults.add("crowd_without_mask", where)
    if crowd and builder.training:
        faults.add("crowd", where)
    area: Any = entry.get("area")
    if not _is_finite(area) or area <= 0:
        faults.add("no_area", where)
        area = math.nan
    box = entry.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        box = [math.nan] * 4
    builder.add_object(image, number, box, label, crowd, area, mask)


def _is_number(value: Any) -> TypeGuard[int]:
    return type(value) is int and abs(value) < 2**62


def _is_finite(value: Any) -> TypeGuard[float]:
    # Python compares integers that no float holds, such as 10⁴⁰⁰.
    return type(value) in (int, float) and abs(value) < _HUGE


def _stated_size(entry: dict[str, Any]) -> tuple[int, int] | None:
    height, width = entry.get("height"), entry.get("width")
    if not _is_finite(height) or not _is_finite(width) or height % 1 or width % 1:
        return None
    known = 0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE
    return (int(height), int(width)) if known else None
