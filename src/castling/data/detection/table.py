"""The annotated images of one split as columns: what remains of an annotation file in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from castling.data.detection.boxes import BoxStyle, read_boxes
from castling.data.detection.segmentations import Segmentation, compare_with_boxes
from castling.data.faults import Faults

#: Pixels of an image's side, at most; more is as good as not stated.
LARGEST_SIDE = 2**31 - 1


@dataclass
class Table:
    """Images and objects of one split, objects in the order of their images.

    Attributes:
        files: names of the image files in their store.
        sizes: (images, 2) height and width as stated; 0 where they are not.
        first: (images + 1,) row of each image's first object.
        boxes: (n, 4) x1, y1, x2, y2 in pixels, or in shares of the sides where ``relative``.
        labels: (n,) classes.
        iscrowd: (n,) regions of several objects.
        area: (n,) pixels² as stated; NaN where they are not.
        ids: (n,) numbers of the annotations, unique in the split.
        segmentations: masks by row; None where there is none.
        relative: whether boxes and polygons are shares of the sides.
    """

    files: list[str]
    sizes: NDArray[np.int64]
    first: NDArray[np.int64]
    boxes: NDArray[np.float64]
    labels: NDArray[np.int64]
    iscrowd: NDArray[np.bool_]
    area: NDArray[np.float64]
    ids: NDArray[np.int64]
    segmentations: list[Segmentation | None]
    relative: bool = False

    def __len__(self) -> int:
        return len(self.files)

    def rows(self, image: int) -> slice:
        """The objects of one image."""
        return slice(int(self.first[image]), int(self.first[image + 1]))

    @property
    def unmasked(self) -> int:
        """Objects without masks, but for crowds."""
        crowds = self.iscrowd.tolist()
        return sum(
            each is None and not crowd
            for each, crowd in zip(self.segmentations, crowds, strict=True)
        )


@dataclass
class TableBuilder:
    """Takes the images and objects of a split as a reader finds them, and checks them together.

    Attributes:
        style: how boxes are written.
        noun: what a reader's files call an object, such as ``annotation``.
        faults: takes what is found.
        training: whether the split is trained on.
    """

    style: BoxStyle
    noun: str
    faults: Faults
    training: bool = True
    files: list[str] = field(default_factory=list)
    origins: list[str] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    images: list[int] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    boxes: list[Sequence[float]] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    crowds: list[bool] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    segmentations: list[Segmentation | None] = field(default_factory=list)

    def add_image(self, file: str, size: tuple[int, int], origin: str) -> int:
        """Take an image; its position.

        Args:
            file: its name in the store.
            size: (height, width) as stated; zeros where they are not.
            origin: where its objects are written, as a person finds them.
        """
        self.files.append(file)
        self.sizes.append(size)
        self.origins.append(origin)
        return len(self.files) - 1

    def add_object(
        self,
        image: int,
        number: int,
        box: Sequence[float],
        label: int,
        crowd: bool = False,
        area: float = float("nan"),
        segmentation: Segmentation | None = None,
    ) -> None:
        """Take an object of an image that was taken; the box as it was written."""
        self.images.append(image)
        self.numbers.append(number)
        self.boxes.append(box)
        self.labels.append(label)
        self.crowds.append(crowd)
        self.areas.append(area)
        self.segmentations.append(segmentation)

    def place(self, row: int) -> str:
        """Where an object is written."""
        return f"{self.noun} {self.numbers[row]} of {self.origins[self.images[row]]}"

    def build(self, numbered: bool = False) -> Table:
        """Check boxes against images, masks against boxes; keep what can be used.

        Args:
            numbered: number the objects of the split from 1; otherwise their numbers are unique.
        """
        images = np.array(self.images, dtype=np.int64)
        sizes = np.array(self.sizes, dtype=np.int64).reshape(-1, 2)
        raw = np.array(self.boxes, dtype=np.float64).reshape(-1, 4)
        boxes, usable, sound = read_boxes(raw, sizes[images], self.style, self.place, self.faults)
        relative = self.style == "shares"
        if sound and not relative:  # the boxes of polygons in shares are made of them
            self._compare_masks(boxes, usable)
        order = np.flatnonzero(usable)
        order = order[np.argsort(images[order], kind="stable")]
        counts = np.bincount(images[order], minlength=len(self.files))
        return Table(
            files=self.files,
            sizes=sizes,
            first=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
            boxes=boxes[order],
            labels=np.array(self.labels, dtype=np.int64)[order],
            iscrowd=np.array(self.crowds, dtype=np.bool_)[order],
            area=np.array(self.areas, dtype=np.float64)[order],
            ids=np.arange(1, len(order) + 1)
            if numbered
            else np.array(self.numbers, dtype=np.int64)[order],
            segmentations=[self.segmentations[row] for row in order.tolist()],
            relative=relative,
        )

    def _compare_masks(self, boxes: NDArray[np.float64], usable: NDArray[np.bool_]) -> None:
        rows, masks = [], []
        for row, mask in enumerate(self.segmentations):
            if mask is not None and usable[row]:
                rows.append(row)
                masks.append(mask)
        sizes = [self.sizes[self.images[row]] for row in rows]
        for row, fault in zip(rows, compare_with_boxes(masks, boxes[rows], sizes), strict=True):
            if fault:
                self.faults.add(fault, self.place(row))
