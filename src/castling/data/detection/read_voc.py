"""Pascal VOC's XML files (Everingham et al., "The Pascal VOC Challenge", 2010), one per image."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from castling.data.detection.image_files import size_in_header
from castling.data.detection.read_each import read_each
from castling.data.detection.source import Annotations
from castling.data.detection.table import LARGEST_SIDE, Table, TableBuilder
from castling.data.detection.voc_layout import VocImages, stem, voc_files, voc_splits
from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore

FirstPixel = Literal["auto", 0, 1]
Difficult = Literal["ignore", "train"]


@dataclass
class _Object:
    name: str
    box: list[float]
    difficult: bool


@dataclass
class _File:
    """One annotation file."""

    size: tuple[int, int] = (0, 0)
    image: str = ""
    objects: list[_Object] = field(default_factory=list)


def read_voc(
    store: FileStore, first_pixel: FirstPixel = "auto", difficult: Difficult = "ignore"
) -> Annotations:
    """Read all annotation files of a folder.

    Splits are the lists in ``ImageSets/Main``, or the folders train, val and test; otherwise all
    images train.

    Args:
        store: holds images and annotations.
        first_pixel: VOC counts pixels from 1, and xmax is the box's last; with ``0`` the numbers
            are corners as they stand; ``auto``: 1 unless there is a coordinate 0.
        difficult: whether objects marked difficult count as crowds, or as any others.

    Raises:
        DataError: there are no annotation files.
    """
    names = voc_files(store)
    if not names:
        raise DataError(
            f"no Pascal VOC annotation files (.xml) in {store.describe('')}: put them into "
            "Annotations/, and the images into JPEGImages/"
        )
    faults = Faults()
    read = read_each(names, partial(_read_file, store), faults)
    zeros = [name for name, file in read.items() if any(0 in each.box for each in file.objects)]
    if first_pixel == "auto":
        faults.add_all("first_pixel", zeros)
        first_pixel = 0 if zeros else 1
    classes = sorted({each.name for file in read.values() for each in file.objects})
    images = VocImages(store.listing().files)
    tables = {
        split: _table(
            store,
            {name: read[name] for name in chosen if name in read},
            images,
            classes,
            first_pixel,
            difficult,
            TableBuilder("corners", "object", faults, training=split == "train"),
        )
        for split, chosen in voc_splits(store, names, faults).items()
    }
    used = {file for table in tables.values() for file in table.files}
    faults.add_all("unannotated", images.without(names, used))
    objects = sum(len(file.objects) for file in read.values())
    return Annotations(store, classes, tables, faults, {"objects": objects, "images": len(names)})


def _table(
    store: FileStore,
    files: Mapping[str, _File],
    images: VocImages,
    classes: Sequence[str],
    first_pixel: int,
    difficult: Difficult,
    builder: TableBuilder,
) -> Table:
    faults = builder.faults
    for name, file in files.items():
        path = images.of(name, file.image)
        if path is None:
            faults.add("no_file", f"{file.image or posixpath.basename(name)} of {name}")
            continue
        if file.image and stem(file.image) != stem(path):
            faults.add("other_name", f"{name}: {file.image}")
        size = file.size
        if not all(size):
            faults.add("no_size", name)
            size = size_in_header(store, path)
        image = builder.add_image(path, size, name)
        for number, each in enumerate(file.objects, 1):
            if each.difficult:
                faults.add("difficult", f"object {number} of {name}")
            x1, y1, x2, y2 = each.box
            builder.add_object(
                image,
                number,
                [x1 - first_pixel, y1 - first_pixel, x2, y2],
                classes.index(each.name),
                each.difficult and difficult == "ignore",
            )
    return builder.build(numbered=True)


def _read_file(store: FileStore, name: str, faults: Faults) -> _File | None:
    from defusedxml import DefusedXmlException
    from defusedxml.ElementTree import ParseError, fromstring

    try:
        with store.open(name) as stream:
            root = fromstring(stream.read(), forbid_dtd=True)
    except DefusedXmlException:
        faults.add("entities", name)
        return None
    except (ParseError, ValueError, LookupError) as error:  # LookupError: an unknown encoding
        faults.add("not_whole", f"{name}: {error}")
        return None
    if root.tag != "annotation":
        faults.add("not_whole", f"{name} begins with <{root.tag}>")
        return None
    file = _File(_size(root), _text(root, "filename"))
    for number, each in enumerate(root.findall("object"), 1):
        where = f"object {number} of {name}"
        label = _text(each, "name")
        if not label:
            faults.add("no_section", f"{where}: name")
            continue
        texts = [_text(each, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        box = [_number(text) for text in texts]
        if all(map(math.isfinite, box)) and any(value % 1 for value in box):
            faults.add("fractions", where)
        file.objects.append(_Object(label, box, _text(each, "difficult") == "1"))
    return file


def _size(root: Any) -> tuple[int, int]:
    """(height, width) as stated; zeros where one is not."""
    height, width = (_number(_text(root, f"size/{side}")) for side in ("height", "width"))
    known = 1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE
    return (int(height), int(width)) if known else (0, 0)


def _text(element: Any, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan
