"""COCO's panoptic annotations (cocodataset.org/#format-data, 4), as a class for every pixel."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Mapping
from typing import Any

import numpy as np

from castling.data.detection.locate import locate
from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.registry import Colour
from castling.data.segmentation.encoding import Encoding, Segments
from castling.data.segmentation.naming import Numbering, check_classes
from castling.data.segmentation.pairs import SPLITS, Pairs
from castling.data.segmentation.raw_mask import code_of, segment_id
from castling.data.segmentation.read_masks import folders_of, only_as_training
from castling.data.segmentation.reading import Masks
from castling.data.split_folders import split_of
from castling.utils.labels import IGNORED

_LARGEST_ID = (1 << 24) - 1
_Content = dict[str, list[dict[str, Any]]]
_NEEDS: dict[str, dict[str, Any]] = {
    "images": {"id": (int, str), "file_name": str},
    "annotations": {"image_id": (int, str), "file_name": str, "segments_info": list},
    "categories": {"id": int, "name": str},
}


def find_panoptic(store: FileStore) -> dict[str, str]:
    """The files ``panoptic_….json`` by split.

    Raises:
        DataError: there are several for one split.
    """
    found: dict[str, str] = {}
    for file in store.listing().files:
        name = posixpath.basename(file).lower()
        if name.startswith("panoptic") and name.endswith(".json"):
            split = split_of(name.removesuffix(".json")) or "train"
            if split in found:
                raise DataError(
                    f"{found[split]} and {file} in {store.describe('')} may both be the {split} "
                    "annotations; keep one of them there"
                )
            found[split] = file
    return {split: found[split] for split in SPLITS if split in found}


def read_panoptic(store: FileStore) -> Masks:
    """Read all splits; things and stuff are classes alike, pixels without a segment are of none.

    Raises:
        DataError: there are no annotations, or several of one split.
        ValueError: there are too many classes.
    """
    faults = Faults()
    files = find_panoptic(store)
    if not files:
        raise DataError(
            f"no panoptic annotations in {store.describe('')}: put panoptic_train2017.json and the "
            "folder panoptic_train2017 of its PNG files there or into annotations/"
        )
    read = {split: _content(store, file, faults) for split, file in files.items()}
    names, colours = _classes([each for each in read.values() if each], faults)
    labels = {name: label for label, name in enumerate(names)}
    pairs = {
        split: _pairs(store, files[split], content, split, labels, faults)
        for split, content in read.items()
        if content
    }
    pairs, notes = only_as_training({split: each for split, each in pairs.items() if len(each)})
    check_classes(names, next(iter(files.values())))
    return Masks(
        store,
        pairs,
        names,
        Encoding({}, {code_of(colour): label for label, colour in enumerate(colours)}),
        Numbering(),
        faults,
        tuple(notes),
        f"{folders_of(pairs)}; classes by {next(iter(files.values()))}",
    )


def _content(store: FileStore, file: str, faults: Faults) -> _Content:
    """One file, its sections as far as they are sound; empty where nothing can be made of it."""
    try:
        with store.open(file) as stream:
            content = json.loads(stream.read())
    except (ValueError, RecursionError) as error:
        faults.add("not_whole", f"{store.describe(file)}: {error}")
        return {}
    sections: _Content = {}
    for section, needs in _NEEDS.items():
        entries = content.get(section) if isinstance(content, dict) else None
        if not isinstance(entries, list):
            faults.add("no_section", f"{file}: {section}")
            return {}
        sound = [each for each in entries if _fits(each, needs)]
        if len(sound) < len(entries):
            bad = next(each for each in entries if not _fits(each, needs))
            text = f"{file}: {section} such as {json.dumps(bad)[:60]}"
            faults.add("no_section", text, len(entries) - len(sound))
        sections[section] = sound
    return sections


def _fits(entry: Any, needs: Mapping[str, Any]) -> bool:
    return isinstance(entry, dict) and all(
        isinstance(entry.get(name), kind) and not isinstance(entry.get(name), bool)
        for name, kind in needs.items()
    )


def _classes(read: list[_Content], faults: Faults) -> tuple[list[str], list[Colour]]:
    """Names in the order of the training file's ids, and colours where every class has one."""
    if not read:
        return [], []
    entries = sorted(read[0]["categories"], key=lambda each: each["id"])
    for field in ("id", "name"):
        values = [each[field] for each in entries]
        faults.add_all("double_category", (str(v) for v in {*values} if values.count(v) > 1))
    names = list(dict.fromkeys(each["name"] for each in entries))
    colours: list[Colour] = []
    for each in entries:
        colour = each.get("color")
        if (
            isinstance(colour, list)
            and len(colour) == 3
            and all(type(part) is int and 0 <= part <= 255 for part in colour)
        ):
            colours.append((colour[0], colour[1], colour[2]))
    whole = len(colours) == len(names) == len({*colours})
    return names, colours if whole else []


def _pairs(
    store: FileStore,
    file: str,
    content: _Content,
    split: str,
    labels: Mapping[str, int],
    faults: Faults,
) -> Pairs:
    """Images with their PNG files and what the ids in them mean."""
    own = {each["id"]: labels.get(each["name"], IGNORED) for each in content["categories"]}
    files = store.listing().files
    entries = content["annotations"]
    by_image = {each["image_id"]: each for each in entries}
    beside = posixpath.splitext(file)[0]
    folder = beside if any(each.startswith(f"{beside}/") for each in files) else None
    found = locate(files, [each["file_name"] for each in entries], split, folder)
    masks = {
        each["image_id"]: mask
        for each, mask in zip(entries, found, strict=True)
        if mask is not None
    }
    pairs = Pairs()
    images = content["images"]
    places = locate(files, [each["file_name"] for each in images], split)
    for image, place in zip(images, places, strict=True):
        if place is None:
            faults.add("no_image", f"{image['file_name']} of {file}")
        elif image["id"] not in masks:
            faults.add("no_mask", place)
        else:
            pairs.images.append(place)
            pairs.masks.append(masks[image["id"]])
            pairs.segments.append(_segments(by_image[image["id"]], own, faults))
    return pairs


def _segments(entry: dict[str, Any], labels: Mapping[int, int], faults: Faults) -> Segments:
    """What the colours of one mask mean; 0 is no segment."""
    found = {0: IGNORED}
    for segment in entry["segments_info"]:
        number = segment.get("id") if isinstance(segment, dict) else None
        if type(number) is not int or not 0 < number <= _LARGEST_ID:
            faults.add("no_section", f"segments_info of {entry['file_name']}")
            continue
        category = segment.get("category_id")
        if type(category) is not int or category not in labels:
            faults.add("unknown_category", f"category {category} of {entry['file_name']}")
            continue
        found[segment_id(number)] = labels[category]
    codes = sorted(found)
    return np.array(codes, dtype=np.int32), np.array([found[c] for c in codes], dtype=np.uint8)
