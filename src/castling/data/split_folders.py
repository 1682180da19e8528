"""Whether the top folders of a set are splits (train, val, test) or classes."""

from __future__ import annotations

import re
from typing import Literal

from castling.data.errors import DataError
from castling.data.formats import is_image
from castling.utils.text import few, printable

LayoutOption = Literal["auto", "splits", "classes"]

#: The split that a folder of this name, in lower case, may hold.
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


#: For whoever wanted boxes: ends complaints about folders that are not classes.
OR_BOXES = "; objects to detect need annotations of COCO, Pascal VOC or YOLO: none were found"


def split_of(name: str) -> str:
    """The split that a file's or folder's name says: ``instances_val2017`` is ``val``; or empty."""
    for word in re.findall(r"[a-z]+", name.lower()):
        if word in SPLIT_NAMES:
            return SPLIT_NAMES[word]
    return ""


class _Head:
    """What lies in one top folder.

    Attributes:
        loose: whether images lie directly in it.
        classes: its folders that hold images at any depth.
    """

    def __init__(self) -> None:
        self.loose = False
        self.classes: set[str] = set()

    @property
    def images(self) -> bool:
        return self.loose or bool(self.classes)


def find_splits(
    files: list[str], folders: list[str], layout: LayoutOption, where: str
) -> tuple[dict[str, str], list[str]]:
    """The folder of each split; ``{"train": ""}`` where the top folders are classes.

    With ``auto``, a name such as ``train`` decides nothing alone, since classes have such names
    too. The top folders are splits where train/ holds folders of images and another split stands
    beside it, or where no other folder holds images. They are classes where none has the name of a
    split, or train/ alone has and holds images directly. Whatever may be either is refused.

    Args:
        files: relative names.
        folders: the same.
        layout: ``auto``, or what the user says.
        where: the place, for messages.

    Returns:
        Folders by split, and notes.

    Raises:
        DataError: the folders may be either, two folders are one split, or there is no train
            folder.
    """
    heads = {folder: _Head() for folder in folders if "/" not in folder}
    for file in files:
        parts = file.split("/", 2)
        if len(parts) > 1 and is_image(file):
            head = heads[parts[0]]
            if len(parts) == 2:
                head.loose = True
            else:
                head.classes.add(parts[1])
    named = {name: SPLIT_NAMES[name.lower()] for name in heads if name.lower() in SPLIT_NAMES}
    others = {name for name, head in heads.items() if name not in named and head.images}
    if layout == "auto":
        layout = _decide(heads, named, others, where)
    if layout == "classes":
        return {"train": ""}, []
    splits: dict[str, str] = {}
    for name, split in named.items():
        if split in splits:
            raise DataError(f"{where} has both {splits[split]}/ and {name}/; keep one of them")
        splits[split] = name
    if "train" not in splits:
        raise DataError(
            f"{where} has {', '.join(sorted(named)) or 'no folder of a split'} but no train "
            "folder; if the folders are classes, give --data.source.layout classes"
        )
    notes = []
    for split in ("val", "test"):
        if split in splits and _unlabelled(heads[splits[split]], heads[splits["train"]]):
            notes.append(
                f"{splits.pop(split)}/ holds images without classes, so it is not used as the "
                f"{split} split"
            )
    ignored = sorted(set(heads) - set(named))
    if ignored:
        notes.append(f"ignored beside the splits: {few(map(printable, ignored))}")
    return splits, notes


def _decide(
    heads: dict[str, _Head], named: dict[str, str], others: set[str], where: str
) -> LayoutOption:
    """What the top folders are.

    Args:
        heads: all of them.
        named: the split of each that has the name of one.
        others: the rest, as far as they hold images.
        where: for the error.
    """
    if not named:
        return "classes"
    direct = all(heads[name].loose and not heads[name].classes for name in named)
    kinds = set(named.values())
    if not others and not (direct and len(named) > 1):
        return "splits"
    if others and direct and kinds == {"train"}:  # images of a split lie in folders of classes
        return "classes"
    if (
        others
        and len(kinds) > 1
        and any(heads[name].classes for name, split in named.items() if split == "train")
    ):
        return "splits"
    what = few(map(printable, sorted(named)), 3)
    if others:
        what += f" beside {few(map(printable, sorted(others)), 3)}"
    direct_advice = "; images of a split go into folders of classes, such as train/cat/1.jpg"
    raise DataError(
        f"the folders {what} in {where} may be splits, or classes of such names: say which with "
        "--data.source.layout splits or --data.source.layout classes"
        + (direct_advice if direct else "")
        + OR_BOXES
    )


def _unlabelled(head: _Head, train: _Head) -> bool:
    """Whether a split holds images, but none in a folder named like a class of training."""
    if not head.images:
        return False
    return (head.loose and not head.classes) or (
        len(head.classes) == 1 and len(train.classes) > 1 and not head.classes & train.classes
    )
