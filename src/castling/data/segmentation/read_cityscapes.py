"""Cityscapes' fine annotations (github.com/mcordts/cityscapesScripts, helpers/labels.py)."""

from __future__ import annotations

import re

from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.segmentation.encoding import Encoding
from castling.data.segmentation.naming import Numbering
from castling.data.segmentation.pairs import SPLITS, Pairs
from castling.data.segmentation.raw_mask import code_of
from castling.data.segmentation.read_masks import folders_of
from castling.data.segmentation.source import Masks
from castling.utils.labels import IGNORED

#: Names, ids in ``labelIds`` and colours of the classes, in the order of their train ids.
CITYSCAPES_CLASSES = (
    ("road", 7, (128, 64, 128)),
    ("sidewalk", 8, (244, 35, 232)),
    ("building", 11, (70, 70, 70)),
    ("wall", 12, (102, 102, 156)),
    ("fence", 13, (190, 153, 153)),
    ("pole", 17, (153, 153, 153)),
    ("traffic light", 19, (250, 170, 30)),
    ("traffic sign", 20, (220, 220, 0)),
    ("vegetation", 21, (107, 142, 35)),
    ("terrain", 22, (152, 251, 152)),
    ("sky", 23, (70, 130, 180)),
    ("person", 24, (220, 20, 60)),
    ("rider", 25, (255, 0, 0)),
    ("car", 26, (0, 0, 142)),
    ("truck", 27, (0, 0, 70)),
    ("bus", 28, (0, 60, 100)),
    ("train", 31, (0, 80, 100)),
    ("motorcycle", 32, (0, 0, 230)),
    ("bicycle", 33, (119, 11, 32)),
)
_IDS = 34  # ids are 0 to 33; -1 is stored as 255
_IMAGE = re.compile(
    r"(?P<top>.*/)?leftImg8bit/(?P<split>train|val|test)/(?P<rest>.+)_leftImg8bit\.\w+"
)
_MASK = re.compile(
    r"(?P<top>.*/)?gtFine/(?P<split>train|val|test)/(?P<rest>.+)_gtFine_(?P<kind>labelIds|"
    r"labelTrainIds)\.png"
)


def is_cityscapes(store: FileStore) -> bool:
    """Whether there are folders leftImg8bit and gtFine with files of Cityscapes' names."""
    files = store.listing().files
    return any(map(_MASK.fullmatch, files)) and any(map(_IMAGE.fullmatch, files))


def read_cityscapes(store: FileStore) -> Masks:
    """Read the pairs; ``labelTrainIds`` where every image has one, otherwise ``labelIds``.

    Raises:
        DataError: there are none.
    """
    faults, notes = Faults(), []
    images: dict[tuple[str, ...], str] = {}
    masks: dict[str, dict[tuple[str, ...], str]] = {"labelTrainIds": {}, "labelIds": {}}
    for file in store.listing().files:
        image, mask = _IMAGE.fullmatch(file), _MASK.fullmatch(file)
        if image is not None:
            images[image["top"] or "", image["split"], image["rest"]] = file
        elif mask is not None:
            masks[mask["kind"]][mask["top"] or "", mask["split"], mask["rest"]] = file
    if not images or not any(masks.values()):
        raise DataError(
            f"no Cityscapes in {store.describe('')}: its layout has "
            "leftImg8bit/train/CITY/x_leftImg8bit.png and gtFine/train/CITY/x_gtFine_labelIds.png"
        )
    tests = [key for key in images if key[1] == "test"]
    if tests:
        notes.append(f"the masks of the {len(tests)} test images are not public: they are not used")
    used = {key: file for key, file in images.items() if key[1] != "test"}
    kind = "labelTrainIds" if used.keys() <= masks["labelTrainIds"].keys() else "labelIds"
    chosen = masks[kind]
    found = {split: Pairs() for split in SPLITS}
    for key, file in used.items():
        if key in chosen:
            found[key[1]].images.append(file)
            found[key[1]].masks.append(chosen[key])
        else:
            faults.add("no_mask", file)
    faults.add_all(
        "no_image", (file for key, file in chosen.items() if key not in images and key[1] != "test")
    )
    pairs = {split: each for split, each in found.items() if len(each)}
    values = {
        number if kind == "labelTrainIds" else own: number
        for number, (_, own, _) in enumerate(CITYSCAPES_CLASSES)
    }
    if kind == "labelIds":
        values = dict.fromkeys(range(_IDS), IGNORED) | values
    colours = {code_of(colour): number for number, (_, _, colour) in enumerate(CITYSCAPES_CLASSES)}
    return Masks(
        store,
        pairs,
        [name for name, _, _ in CITYSCAPES_CLASSES],
        Encoding(values, colours),
        Numbering(),
        faults,
        tuple(notes),
        f"{folders_of(pairs)}; the 19 classes of its benchmark",
    )
