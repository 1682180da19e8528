"""Pascal VOC's ``SegmentationClass`` (VOC2012 development kit, 3 and 7), and CVAT's copy of it."""

from __future__ import annotations

import posixpath

from castling.data.detection.voc_layout import stem, voc_splits
from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.formats import is_image
from castling.data.segmentation.class_files import find_class_file, read_class_file
from castling.data.segmentation.encoding import Encoding
from castling.data.segmentation.naming import Numbering, check_classes, from_file
from castling.data.segmentation.pairs import Pairs
from castling.data.segmentation.raw_mask import code_of
from castling.data.segmentation.read_masks import folders_of, only_as_training
from castling.data.segmentation.source import Masks
from castling.utils.labels import IGNORED

_MASKS, _IMAGES, _LISTS = "SegmentationClass", "JPEGImages", "Segmentation"
VOC_CLASSES = (
    *("background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat"),
    *("chair", "cow", "diningtable", "dog", "horse", "motorbike", "person", "pottedplant"),
    *("sheep", "sofa", "train", "tvmonitor"),
)


def voc_colour(number: int) -> tuple[int, int, int]:
    """The colour of a number in VOC's palette: its bits, three by three, fill bytes from above."""
    parts = [0, 0, 0]
    for level in range(8):
        for channel in range(3):
            parts[channel] |= (number >> (3 * level + channel) & 1) << (7 - level)
    return parts[0], parts[1], parts[2]


def is_voc_masks(store: FileStore) -> bool:
    """Whether there is a folder SegmentationClass with masks."""
    return any(_MASKS in file.split("/")[-2:-1] for file in store.listing().files)


def read_voc_masks(store: FileStore) -> Masks:
    """Read masks, and splits where there are lists of them.

    Raises:
        DataError: there are no masks, or ``labelmap.txt`` cannot be read.
        ValueError: it names too many classes.
    """
    faults = Faults()
    files = [file for file in store.listing().files if is_image(file)]
    masks = [file for file in files if _MASKS in file.split("/")[-2:-1]]
    if not masks:
        raise DataError(
            f"no masks in a folder {_MASKS} in {store.describe('')}: Pascal VOC's layout has "
            f"{_IMAGES}/a.jpg, {_MASKS}/a.png and ImageSets/{_LISTS}/train.txt"
        )
    images = {
        (posixpath.dirname(posixpath.dirname(file)), stem(file)): file
        for file in files
        if _IMAGES in file.split("/")[-2:-1]
    }
    found: dict[str, Pairs] = {}
    for split, names in voc_splits(store, masks, faults, _LISTS).items():
        pairs = found.setdefault(split, Pairs())
        for mask in names:
            image = images.get((posixpath.dirname(posixpath.dirname(mask)), stem(mask)))
            if image is None:
                faults.add("no_image", mask)
            else:
                pairs.images.append(image)
                pairs.masks.append(mask)
    pairs_by_split, notes = only_as_training({s: each for s, each in found.items() if len(each)})
    names, encoding, said = _classes(store)
    check_classes(names, said)
    read_as = f"{folders_of(pairs_by_split)}; {said}"
    return Masks(store, pairs_by_split, names, encoding, Numbering(), faults, tuple(notes), read_as)


def _classes(store: FileStore) -> tuple[list[str], Encoding, str]:
    file = find_class_file(store.listing().files)
    if file is not None:
        names, encoding, left_out = from_file(read_class_file(store, file), Numbering())
        return names, encoding, f"classes by {file}" + "".join(f", {n} is none" for n in left_out)
    numbers = range(len(VOC_CLASSES))
    colours = {code_of(voc_colour(number)): number for number in numbers}
    border = {code_of(voc_colour(IGNORED)): IGNORED}
    encoding = Encoding({number: number for number in numbers}, colours | border)
    return list(VOC_CLASSES), encoding, f"the {len(VOC_CLASSES)} classes of VOC"
