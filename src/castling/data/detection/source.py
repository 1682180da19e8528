"""A source of image files whose objects were read into tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
from torchvision import tv_tensors

from castling.data.annotated import ImageFiles
from castling.data.decode import image_tensor, read_image, read_orientation
from castling.data.detection.faults import FAULTS
from castling.data.detection.image_files import check_files
from castling.data.detection.masks import mask_areas
from castling.data.detection.segmentations import box_to_rle, to_rle
from castling.data.detection.table import Table
from castling.data.detection.target import detection_target
from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.problems import DataReport, Depth, FaultyDataError, unreadable
from castling.data.registry import DataInfo
from castling.data.sample import Sample


@dataclass
class Annotations:
    """What a reader made of annotation files.

    Attributes:
        store: holds the image files.
        classes: names in the order of the labels.
        tables: images and objects by split; empty where nothing could be read.
        faults: of the annotations.
        counts: number of ``objects`` and ``images`` that were listed, faulty ones included.
        notes: what a person should know about how splits and files were found.
    """

    store: FileStore
    classes: list[str]
    tables: dict[str, Table]
    faults: Faults
    counts: dict[str, int]
    notes: tuple[str, ...] = ()


class AnnotatedImages(ImageFiles):
    """Image files with boxes, and masks where every object has one.

    Args:
        name: what a person calls the source.
        read: annotations.
        leave_out: the share of objects or images that one kind of fault may leave out.

    Raises:
        FaultyDataError: there are no training images; the message is the whole report.
    """

    def __init__(self, name: str, read: Annotations, leave_out: float) -> None:
        super().__init__(read.store, {split: each.files for split, each in read.tables.items()})
        self._name, self._read, self._leave_out = name, read, leave_out
        self._check_names()
        self._check_classes()
        masked = self._check_masks()
        self.info = DataInfo(
            classes=read.classes,
            splits={split: len(table) for split, table in read.tables.items()},
            kind="detection",
            has_masks=masked,
            notes=read.notes,
        )
        if not self.info.splits.get("train"):
            raise FaultyDataError(self.report(depth="none"))

    def _check_names(self) -> None:
        """Whether an image file is listed twice, in one split or two."""
        used: dict[str, str] = {}
        for split, table in self._read.tables.items():
            twice = (file for file, count in Counter(table.files).items() if count > 1)
            self._read.faults.add_all("double_file", (f"{file} in {split}" for file in twice))
            for file in dict.fromkeys(table.files):
                if used.setdefault(file, split) != split:
                    self._read.faults.add("overlap", f"{file} of {split} and {used[file]}")

    def _check_classes(self) -> None:
        faults, classes = self._read.faults, self._read.classes
        for split, table in self._read.tables.items():
            seen = set(table.labels[~table.iscrowd].tolist())
            if not seen:
                faults.add("no_objects" if split == "train" else "no_held_out_objects", split)
            else:
                absent = [name for label, name in enumerate(classes) if label not in seen]
                faults.add_all("empty_class", (f"{name} in {split}" for name in absent))

    def _check_masks(self) -> bool:
        """Whether every object has a mask; where some have, drop them and say so."""
        tables = self._read.tables.values()
        missing = sum(table.unmasked for table in tables)
        masks = sum(each is not None for table in tables for each in table.segmentations)
        if missing or not masks:
            if masks:
                self._read.faults.add("no_mask", f"{masks} others have one", missing)
            for table in tables:
                table.segmentations = [None] * len(table.segmentations)
        return bool(masks) and not missing

    def report(self, splits: Collection[str] | None = None, depth: Depth = "headers") -> DataReport:
        """See :class:`castling.data.problems.ReportingSource`."""
        read = self._read
        known = read.tables if splits is None else [each for each in read.tables if each in splits]
        found, complaints = check_files(read.store, read.tables, known, depth)
        problems = list(read.faults.together(found).problems(FAULTS, self._leave_out, read.counts))
        if complaints:
            problems.append(unreadable(complaints))
        return DataReport(
            tuple(problems),
            self._name,
            {split: len(table) for split, table in read.tables.items()},
            {split: len(table.labels) for split, table in read.tables.items()},
            tuple(read.classes),
        )

    def problems(self) -> list[str]:
        """The faults of the annotations, a line each."""
        return [str(each) for each in self.report(depth="none").problems]

    def sample(self, split: str, index: int) -> Sample:
        """One image, RGB, in the orientation that its annotations refer to.

        Its target is that of :func:`castling.data.detection.target.detection_target`.

        Raises:
            DataError: the file is damaged; it is named.
        """
        table, name = self._read.tables[split], self.name(split, index)
        height, width = table.sizes[index].tolist()
        with self._read.store.open(table.files[index]) as stream:
            image = image_tensor(read_image(stream, name, self.notice(name), (width, height)))
        size = (image.shape[1], image.shape[2])
        if height and width and size != (height, width):
            raise DataError(
                f"{name} has {size[1]}×{size[0]} pixels, its annotations state {width}×{height}"
            )
        rows = table.rows(index)
        boxes, area = table.boxes[rows], table.area[rows].copy()
        if table.relative:
            boxes = boxes * np.array([*size[::-1], *size[::-1]])
        rles = None
        if self.info.has_masks:
            rles = [
                box_to_rle(box, size) if mask is None else to_rle(mask, size, table.relative)
                for box, mask in zip(boxes.tolist(), table.segmentations[rows], strict=True)
            ]
        unstated = ~(area > 0)
        if unstated.any():
            sides = boxes[:, 2:] - boxes[:, :2]
            known = sides.prod(axis=1) if rles is None else mask_areas(rles).astype(np.float64)
            area[unstated] = known[unstated]
        return Sample(
            image=tv_tensors.Image(image),
            target=detection_target(
                boxes,
                table.labels[rows],
                size,
                iscrowd=table.iscrowd[rows],
                area=area,
                ids=table.ids[rows],
                rles=rles,
            ),
            index=index,
            name=name,
            original_size=size,
        )

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(height, width) as stated, or of the upright image by the file's header.

        Raises:
            DataError: the header is damaged; the file is named.
        """
        table = self._read.tables[split]
        height, width = table.sizes[index].tolist()
        if height and width:
            return height, width
        name = self.name(split, index)
        with self._read.store.open(table.files[index]) as stream:
            _, (width, height), _ = read_orientation(stream, name)
        table.sizes[index] = height, width
        return height, width

    def labels(self, split: str) -> None:
        """An image is of no single class."""
