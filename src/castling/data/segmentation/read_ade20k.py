"""ADE20K as in the scene-parsing benchmark (ADEChallengeData2016; Zhou et al. 2017)."""

from __future__ import annotations

import posixpath
import re

from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.segmentation.naming import Numbering, numbered_encoding
from castling.data.segmentation.read_masks import MaskOptions, read_masks
from castling.data.segmentation.source import Masks

_NAMES_FILE = "objectInfo150.txt"
_IMAGE = re.compile(r"ADE_(train|val)_\d+\.jpg")
_NAMES = """
    wall, building, sky, floor, tree, ceiling, road, bed, windowpane, grass, cabinet, sidewalk,
    person, earth, door, table, mountain, plant, curtain, chair, car, water, painting, sofa, shelf,
    house, sea, mirror, rug, field, armchair, seat, fence, desk, rock, wardrobe, lamp, bathtub,
    railing, cushion, base, box, column, signboard, chest of drawers, counter, sand, sink,
    skyscraper, fireplace, refrigerator, grandstand, path, stairs, runway, case, pool table, pillow,
    screen door, stairway, river, bridge, bookcase, blind, coffee table, toilet, flower, book, hill,
    bench, countertop, stove, palm, kitchen island, computer, swivel chair, boat, bar,
    arcade machine, hovel, bus, towel, light, truck, tower, chandelier, awning, streetlight, booth,
    television receiver, airplane, dirt track, apparel, pole, land, bannister, escalator, ottoman,
    bottle, buffet, poster, stage, van, ship, fountain, conveyer belt, canopy, washer, plaything,
    swimming pool, stool, barrel, basket, waterfall, tent, bag, minibike, cradle, oven, ball, food,
    step, tank, trade name, microwave, pot, animal, bicycle, lake, dishwasher, screen, blanket,
    sculpture, hood, sconce, vase, traffic light, tray, ashcan, fan, pier, crt screen, plate,
    monitor, bulletin board, shower, radiator, glass, clock, flag
"""
#: The first of the names of each class, in the order of their numbers, which begin at 1.
ADE20K_CLASSES = tuple(" ".join(_NAMES.split()).split(", "))


def is_ade20k(store: FileStore) -> bool:
    """Whether there are images of its names, with masks, or its table of classes."""
    files = store.listing().files
    names = {posixpath.basename(file) for file in files}
    masks = any("annotations" in file.split("/")[:-1] for file in files)
    return masks and (_NAMES_FILE in names or any(map(_IMAGE.fullmatch, names)))


def read_ade20k(store: FileStore) -> Masks:
    """Read images and annotations; 0 is no class, and others count from 1.

    Raises:
        DataError: there are none.
    """
    read = read_masks(store, MaskOptions(classes=ADE20K_CLASSES))
    read.classes = _named(store, read.faults) or list(ADE20K_CLASSES)
    read.encoding = numbered_encoding(len(read.classes), Numbering(reduce_zero_label=True))
    read.read_as = read.read_as.partition(";")[0] + f"; its {len(read.classes)} classes"
    return read


def _named(store: FileStore, faults: Faults) -> list[str]:
    """The first of the names in the table of classes; empty without one."""
    files = store.listing().files
    file = next((each for each in files if posixpath.basename(each) == _NAMES_FILE), None)
    if file is None:
        return []
    with store.open(file) as stream:
        lines = stream.read().decode("utf-8", "replace").splitlines()
    rows = [line.split("\t") for line in lines if line[:1].isdigit()]
    whole = [row[-1].strip() for row in rows]
    if [row[0].strip() for row in rows] != [str(number + 1) for number in range(len(rows))]:
        faults.add("not_whole", f"{store.describe(file)}: numbers are not 1, 2, …")
        return []
    first = [name.partition(",")[0].strip() for name in whole]
    return [
        name if first.count(name) == 1 else long for name, long in zip(first, whole, strict=True)
    ]
