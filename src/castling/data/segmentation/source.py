"""A source of images with a mask file each."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Collection, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import tv_tensors

from castling.data.annotated import ImageFiles
from castling.data.copies import copies_between_splits
from castling.data.decode import image_tensor, read_image, read_orientation
from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.keys import content_digest
from castling.data.problems import DataReport, Depth, FaultyDataError, unreadable
from castling.data.registry import Colour, DataInfo
from castling.data.sample import Sample
from castling.data.segmentation.checks import (
    check_images,
    check_mask,
    check_palettes,
    highest_number,
    only_black_and_white,
)
from castling.data.segmentation.faults import FAULTS
from castling.data.segmentation.naming import numbered_encoding
from castling.data.segmentation.raw_mask import read_mask
from castling.data.segmentation.reading import Masks
from castling.data.segmentation.scan import MaskFacts, scan_masks
from castling.utils.labels import IGNORED
from castling.utils.text import few


class MaskedImages(ImageFiles):
    """Images with a class for every pixel.

    Args:
        name: what a person calls the source.
        read: pairs of images and masks.
        leave_out: the share of images that one kind of fault may leave out.

    Raises:
        FaultyDataError: there is no training image with a mask, or no class; the message is the
            whole report.
    """

    def __init__(self, name: str, read: Masks, leave_out: float) -> None:
        super().__init__(read.store, {split: each.images for split, each in read.pairs.items()})
        self._name, self._read, self._leave_out = name, read, leave_out
        self._scans: dict[str, list[MaskFacts | str]] = {}
        self._check_names()
        if read.classes is None:
            self._number_classes()
        self.info = DataInfo(
            classes=read.classes or [],
            splits={split: len(pairs) for split, pairs in read.pairs.items()},
            kind="segmentation",
            colours=self._colours(),
            notes=read.notes,
        )
        if not self.info.splits.get("train") or not read.classes:
            raise FaultyDataError(self.report(depth="headers" if self.info.splits else "none"))

    def _check_names(self) -> None:
        """Whether an image is in two splits."""
        used: dict[str, str] = {}
        for split, pairs in self._read.pairs.items():
            for file in pairs.images:
                if used.setdefault(file, split) != split:
                    self._read.faults.add("overlap", f"{file} of {split} and {used[file]}")

    def _number_classes(self) -> None:
        """Classes as the masks number them."""
        read = self._read
        numbering = read.numbering
        masks = [facts for split in read.pairs for facts in self._sound(split)]
        highest = highest_number(masks, numbering.no_class)
        read.classes = [f"class {number}" for number in range(numbering.first, highest + 1)]
        read.encoding = numbered_encoding(len(read.classes), numbering)

    def _colours(self) -> tuple[Colour, ...]:
        """Those of the table of colours, or of the first training mask's palette."""
        read = self._read
        classes = len(read.classes or ())
        stated = read.encoding.colour_table(classes)
        if stated or not read.pairs.get("train"):
            return stated
        file = read.pairs["train"].masks[0]
        try:
            with read.store.open(file) as stream:
                palette = read_mask(stream, file).palette
        except DataError:  # it is named by the check of all masks
            return ()
        return () if palette is None else read.encoding.palette_table(palette, classes)

    def _scan(self, split: str) -> list[MaskFacts | str]:
        """What the masks of a split hold; they are decoded once."""
        if split not in self._scans:
            self._scans[split] = scan_masks(self._read.store, self._read.pairs[split].masks)
        return self._scans[split]

    def _sound(self, split: str) -> list[MaskFacts]:
        return [facts for facts in self._scan(split) if isinstance(facts, MaskFacts)]

    def report(self, splits: Collection[str] | None = None, depth: Depth = "headers") -> DataReport:
        """See :class:`castling.data.problems.ReportingSource`.

        Masks are decoded with ``headers`` too: what they hold is seen nowhere else.
        """
        read = self._read
        known = [each for each in read.pairs if splits is None or each in splits]
        faults, problems = Faults(), []
        if depth != "none":
            found, complaints = self._check_files(known, depth)
            faults.take(found)
            problems = [unreadable(complaints)] if complaints else []
        listed = sum(map(len, read.pairs.values())) + read.faults.counts.get("no_mask", 0)
        together = read.faults.together(faults)
        return DataReport(
            (*together.problems(FAULTS, self._leave_out, {"images": listed}), *problems),
            self._name,
            {split: len(pairs) for split, pairs in read.pairs.items()},
            classes=tuple(read.classes or ()),
            read_as=read.read_as,
        )

    def problems(self) -> list[str]:
        """The faults of folders and annotation files, a line each."""
        return [str(each) for each in self.report(depth="none").problems]

    def _check_files(self, splits: Sequence[str], depth: Depth) -> tuple[Faults, list[str]]:
        """Faults of masks and images, and a complaint for each image that cannot be read."""
        read, faults, complaints = self._read, Faults(), []
        lengths: dict[int, list[tuple[str, str]]] = defaultdict(list)
        sound: list[tuple[str, MaskFacts]] = []
        for split in splits:
            pairs, scans = read.pairs[split], self._scan(split)
            for index, facts in enumerate(scans):
                mask = pairs.masks[index]
                if isinstance(facts, str):
                    faults.add("unreadable", facts)
                elif check_mask(facts, mask, read.encoding, pairs.segments_of(index), faults):
                    sound.append((mask, facts))
            found, more, bytes_of = check_images(read.store, pairs, scans, depth)
            faults.take(found)
            complaints += more
            for index, length in bytes_of.items():
                lengths[length].append((split, pairs.images[index]))
        training = self._sound("train") if "train" in splits else []
        if not read.encoding.colours_first and only_black_and_white(training):
            faults.add("binary", read.store.describe(""))
        elif training and sound:
            absent = np.flatnonzero(self.pixel_counts("train") == 0).tolist()
            faults.add_all("absent_class", (self.info.classes[label] for label in absent))
        names, masks = [mask for mask, _ in sound], [facts for _, facts in sound]
        if not read.encoding.colours_first:
            check_palettes(names, masks, read.encoding, faults)
        faults.add_all("overlap", copies_between_splits(read.store, lengths))
        return faults, complaints

    def pixel_counts(
        self, split: str, positions: Sequence[int] | NDArray[np.int64] | None = None
    ) -> NDArray[np.int64]:
        """(K,) pixels of each class; see :func:`castling.data.segmentation.counts.pixel_counts`.

        All masks of the split are decoded once; those that cannot be read do not count.
        """
        pairs, scans, encoding = self._read.pairs[split], self._scan(split), self._read.encoding
        total = np.zeros(IGNORED + 1, dtype=np.int64)
        for index in range(len(pairs)) if positions is None else positions:
            facts = scans[int(index)]
            if isinstance(facts, MaskFacts):
                total += facts.label_counts(encoding, pairs.segments_of(int(index)))[0]
        return total[: len(self._read.classes or ())]

    def sample(self, split: str, index: int) -> Sample:
        """One image, RGB, in the orientation that has its mask's size; ``mask`` (H, W) of uint8.

        Raises:
            DataError: a file is damaged, sizes differ, or the mask holds what is no class.
        """
        mask, size = self._labels(split, index)
        name = self.name(split, index)
        with self._store.open(self._files[split][index]) as stream:
            image = image_tensor(read_image(stream, name, self.notice(name), size[::-1]))
        if (image.shape[1], image.shape[2]) != size:
            raise DataError(
                f"{name} has {image.shape[2]}×{image.shape[1]} pixels, its mask {size[1]}×{size[0]}"
            )
        return Sample(
            image=tv_tensors.Image(image),
            target={"mask": tv_tensors.Mask(torch.from_numpy(mask))},
            index=index,
            name=name,
            original_size=size,
        )

    def _labels(self, split: str, index: int) -> tuple[NDArray[np.uint8], tuple[int, int]]:
        """(H, W) labels of one mask, and its size.

        Raises:
            DataError: it is damaged, or holds what is no class.
        """
        pairs, encoding = self._read.pairs[split], self._read.encoding
        name = self._store.describe(pairs.masks[index])
        with self._store.open(pairs.masks[index]) as stream:
            raw = read_mask(stream, name)
        codes, colour = encoding.read(raw)
        labels = encoding.labels(codes, colour, pairs.segments_of(index))
        unknown = labels < 0
        if unknown.any():
            shown = few(map(str, np.unique(codes[unknown]).tolist()), 3)
            raise DataError(
                f"the mask {name} holds {'colours' if colour else 'numbers'} that are no class "
                f"({shown}); castling check-data lists all such masks"
            )
        height, width = labels.shape
        return labels.astype(np.uint8), (height, width)

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(height, width) of the image as it is shown, by the headers of image and mask.

        Raises:
            DataError: a header is damaged; the file is named.
        """
        pairs = self._read.pairs[split]
        with self._store.open(pairs.images[index]) as stream:
            stored, upright, _ = read_orientation(stream, self.name(split, index))
        if stored != upright:  # the mask says which of them counts
            mask = pairs.masks[index]
            with self._store.open(mask) as stream:
                own, _, _ = read_orientation(stream, self._store.describe(mask))
            upright = stored if own == stored else upright
        return upright[::-1]

    def annotation(self, split: str, index: int) -> str:
        """Digest of the mask's bytes, and of what its segments mean.

        Raises:
            DataError: the mask cannot be read; it is named.
        """
        pairs = self._read.pairs[split]
        with self._store.open(pairs.masks[index]) as stream:
            digest = content_digest(stream)
        segments = pairs.segments_of(index)
        if segments is None:
            return digest
        ids, labels = segments
        together = hashlib.blake2b(digest.encode() + ids.tobytes() + labels.tobytes())
        return together.hexdigest()[:16]

    def labels(self, split: str) -> None:
        """An image is of no single class."""
