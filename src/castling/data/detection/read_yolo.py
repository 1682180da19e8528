"""YOLO's text files, one per image: class, centre, width and height, or class and a polygon.

The conventions are those of Ultralytics' and Darknet's documentation: numbers are shares of the
image's sides, and an image without such a file has no objects.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial

import numpy as np

from castling.data.detection.read_each import read_each
from castling.data.detection.source import Annotations
from castling.data.detection.table import Table, TableBuilder
from castling.data.detection.yolo_layout import YoloLayout, yolo_layout
from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore

_UNNAMED = 1000  # classes without names, at most: a larger number is a fault


def read_yolo(store: FileStore, settings: str = "") -> Annotations:
    """Read all label files of a folder.

    Args:
        store: the files.
        settings: the file that names classes and folders; empty: a YAML file that does.

    Raises:
        DataError: there are no images with labels.
    """
    faults = Faults()
    layout = yolo_layout(store, settings, faults)
    faults.add_all("unknown_image", layout.spare)
    if not layout.labels:
        raise DataError(
            f"no YOLO labels in {store.describe('')}: put images into images/train and a text file "
            "of the same name for each into labels/train"
        )
    notes = []
    read = read_each(list(layout.labels.values()), partial(_read_rows, store), faults)
    rows = {image: read.get(label, []) for image, label in layout.labels.items()}
    names = layout.names
    if names is None:
        count = 1 + max((row[0] for found in rows.values() for _, row in found), default=0)
        names = [str(number) for number in range(min(int(count), _UNNAMED))]
        if "not_names" not in faults.counts:  # else the fault says it
            notes.append(
                "no data.yaml or classes.txt names the classes, so they are called by number"
            )
    tables = {
        split: _table(layout, images, rows, len(names), TableBuilder("shares", "line", faults))
        for split, images in layout.splits.items()
    }
    counts = {
        "objects": sum(map(len, rows.values())) + faults.counts.get("not_numbers", 0),
        "images": sum(map(len, layout.splits.values())),
    }
    return Annotations(store, names, tables, faults, counts, tuple(notes))


def _table(
    layout: YoloLayout,
    images: Sequence[str],
    rows: Mapping[str, list[tuple[int, list[float]]]],
    classes: int,
    builder: TableBuilder,
) -> Table:
    faults = builder.faults
    for path in images:
        label = layout.labels.get(path)
        image = builder.add_image(path, (0, 0), label or path)
        if label is None:
            faults.add("background", path)
        seen: set[tuple[float, ...]] = set()
        for line, numbers in rows.get(path, ()):
            where = f"line {line} of {label}"
            kind, rest = numbers[0], numbers[1:]
            if tuple(numbers) in seen:
                faults.add("double_object", where)
                continue
            seen.add(tuple(numbers))
            if kind % 1 or not 0 <= kind < classes:
                faults.add("unknown_category", f"{where}: class {kind:g} of {classes}")
                continue
            mask = None
            if len(rest) != 4:
                points = np.array(rest, dtype=np.float64)
                corners = points.reshape(-1, 2)
                low, high = corners.min(axis=0), corners.max(axis=0)
                rest = [*((low + high) / 2).tolist(), *(high - low).tolist()]
                mask = [points]
            builder.add_object(image, line, rest, int(kind), segmentation=mask)
    return builder.build(numbered=True)


def _read_rows(store: FileStore, file: str, faults: Faults) -> list[tuple[int, list[float]]]:
    """Line number and numbers of each object: class and 4 of a box, or class and a polygon."""
    with store.open(file) as stream:
        lines = stream.read().decode("utf-8-sig", "replace").splitlines()
    found = []
    for line, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            numbers = [float(each) for each in text.split()]
        except ValueError:
            numbers = []
        if len(numbers) < 5 or len(numbers) == 6 or not all(map(math.isfinite, numbers)):
            faults.add("not_numbers", f"line {line} of {file}: {text[:40]}")
        elif len(numbers) > 5 and len(numbers) % 2 == 0:
            faults.add("bad_polygon", f"line {line} of {file}")
        else:
            found.append((line, numbers))
    return found
