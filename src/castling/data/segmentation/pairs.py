"""Which mask belongs to which image, told from the names of folders and files.

A mask lies where its image lies, with ``images`` replaced by ``masks`` (or another of their names)
and the name of the split at any place: ``images/train/a.jpg`` and ``masks/train/a.png``,
``train/images/a.jpg`` and ``train/masks/a.png``, ``train/a.jpg`` and ``train_labels/a.png``. Its
name is that of the image, perhaps with one of ``SUFFIXES`` behind it; so it may lie beside it too:
``train/a.jpg`` and ``train/a_mask.png``.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Literal

from castling.data.faults import Faults
from castling.data.formats import is_image
from castling.data.segmentation.encoding import Segments
from castling.data.split_folders import SPLIT_NAMES

#: Names of folders, in lower case.
IMAGE_FOLDERS = ("images", "image", "imgs", "img", "leftimg8bit", "jpegimages", "sat")
MASK_FOLDERS = (
    *("masks", "mask", "annotations", "annotation", "annots", "annot", "labels", "label"),
    *("segmentations", "segmentation", "groundtruth", "ground_truth", "gt", "gtfine"),
)
#: What the name of a mask may have behind that of its image; the first that is there counts.
SUFFIXES = (
    *("", "_mask", "_masks", "_label", "_labels", "_seg", "_segmentation", "_gt", "_L"),
    *("_gtFine_labelTrainIds", "_gtFine_labelIds", "_labelTrainIds", "_labelIds"),
)
#: Those that nothing but a mask has: others end with ``_L`` for the left of two views.
SPEAKING_SUFFIXES = tuple(suffix for suffix in SUFFIXES if suffix not in ("", "_L"))
#: What the name of an image may have behind what it shares with its mask.
_IMAGE_SUFFIXES = ("_leftImg8bit", "_image", "_img", "_sat")
#: Ends of the names of files beside masks that are none.
_OTHER_FILES = ("_color", "_colour", "_instanceIds", "_instanceTrainIds", "_polygons", "_vis")
SPLITS = ("train", "val", "test")

Role = Literal["image", "mask", ""]


@dataclass
class Pairs:
    """Images and masks of one split, in step.

    Attributes:
        images: names of the image files in their store.
        masks: the same of their masks.
        segments: of panoptic masks: what the colours of each mean; empty for other masks.
    """

    images: list[str] = field(default_factory=list)
    masks: list[str] = field(default_factory=list)
    segments: list[Segments] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.images)

    def segments_of(self, index: int) -> Segments | None:
        """What the colours of one mask mean; None where they mean the same in all masks."""
        return self.segments[index] if self.segments else None


@dataclass(frozen=True)
class Place:
    """What the path of a file says.

    Attributes:
        file: its name in the store.
        role: image or mask; empty where its folders do not say.
        split: empty where they do not say.
        rest: the other folders.
        stem: its name without the ending.
    """

    file: str
    role: Role
    split: str
    rest: str
    stem: str


def _pattern() -> re.Pattern[str]:
    def either(words: Iterable[str]) -> str:
        return "|".join(sorted(words, key=len, reverse=True))

    kinds = f"(?P<image>{either(IMAGE_FOLDERS)})|(?P<mask>{either(MASK_FOLDERS)})"
    splits = either(SPLIT_NAMES)
    year = r"(?:19|20)\d\d"
    return re.compile(
        rf"(?P<before>{splits})?(?:{year})?[-_ ]?(?:{kinds})?[-_ ]?(?P<behind>{splits})?(?:{year})?"
    )


_FOLDER = _pattern()


@cache
def _said_by(folder: str) -> tuple[Role, str]:
    """Role and split of which the name of one folder speaks; empty without."""
    found = _FOLDER.fullmatch(folder.lower())
    if found is None:
        return "", ""
    split = SPLIT_NAMES.get(found["before"] or found["behind"] or "", "")
    return "image" if found["image"] else "mask" if found["mask"] else "", split


def place_of(file: str) -> Place:
    """What the folders of a file say about it."""
    *folders, name = file.split("/")
    role: Role = ""
    split, rest = "", []
    for folder in folders:
        kind, own = _said_by(folder)
        if (not kind and not own) or (kind and role) or (own and split):
            rest.append(folder)
        else:
            role, split = kind or role, own or split
    return Place(file, role, split, "/".join(rest), posixpath.splitext(name)[0])


def find_places(files: Iterable[str]) -> tuple[list[Place], list[Place]]:
    """Images and masks among the files of a store; none where nothing speaks of masks."""
    places = [place_of(file) for file in files if is_image(file)]
    masks = [place for place in places if place.role == "mask"]
    if masks:
        masks = [place for place in masks if not place.stem.endswith(_OTHER_FILES)]
        images = [place for place in places if place.role == "image"]
        others = [place for place in places if not place.role]
        # Without folders of images, those of splits hold them: train/ beside train_labels/.
        return images or [place for place in others if place.split] or others, masks
    known = {(place.split, place.rest, base) for place in places for base in _bases(place.stem)}
    masks = [
        place
        for place in places
        if any(
            (place.split, place.rest, place.stem.removesuffix(suffix)) in known
            for suffix in SUFFIXES[1:]
            if place.stem.endswith(suffix)
        )
    ]
    chosen = {place.file for place in masks}
    return [place for place in places if place.file not in chosen], masks


def places_below(files: Iterable[str], template: str, role: Role) -> list[Place]:
    """The files below a folder in whose name ``{split}`` stands for a split."""
    plain = posixpath.normpath(template).split("{split}")
    splits = "|".join(sorted(SPLIT_NAMES, key=len, reverse=True))
    found = re.compile(rf"(?P<split>{splits})".join(map(re.escape, plain[:2])) + "/(?P<rest>.+)")
    places = []
    for file in filter(is_image, files):
        match = found.fullmatch(file) if template not in ("", ".") else None
        if match is not None:
            folder, name = posixpath.split(match["rest"])
            split = SPLIT_NAMES[match["split"].lower()] if len(plain) > 1 else ""
            places.append(Place(file, role, split, folder, posixpath.splitext(name)[0]))
    return places


def match_pairs(
    images: Sequence[Place], masks: Sequence[Place], faults: Faults
) -> tuple[dict[str, Pairs], list[str]]:
    """The pairs of each split.

    Args:
        images: of all splits; those without one train.
        masks: the same.
        faults: takes what is left over.

    Returns:
        The pairs by split, and notes: held-out splits wholly without masks are not used.
    """
    by_base: dict[tuple[str, str, str], Place] = {}
    twins: set[str] = set()
    for place in images:
        other = by_base.setdefault((place.split, place.rest, place.stem), place)
        if other is not place:
            twins.add(place.file)
            faults.add("double_image", f"{other.file} and {place.file}")
    for place in images:
        for base in _bases(place.stem)[1:]:
            by_base.setdefault((place.split, place.rest, base), place)
    found: dict[str, list[tuple[int, bool, Place]]] = {}
    for place in masks:
        rank, image = _image_of(place, by_base)
        if image is None:
            faults.add("no_image", place.file)
        else:
            lossy = place.file.lower().endswith((".jpg", ".jpeg"))
            found.setdefault(image.file, []).append((rank, lossy, place))
    splits: dict[str, Pairs] = {}
    alone: dict[str, list[str]] = {}
    for place in images:
        split = place.split or "train"
        candidates = sorted(found.get(place.file, ()), key=lambda each: (*each[:2], each[2].file))
        if place.file in twins:
            continue
        if not candidates:
            alone.setdefault(split, []).append(place.file)
            continue
        pairs = splits.setdefault(split, Pairs())
        pairs.images.append(place.file)
        pairs.masks.append(candidates[0][2].file)
        faults.add_all("second_mask", (each.file for _, _, each in candidates[1:]))
    notes = []
    for split, files in alone.items():
        if split in splits or split == "train" or not splits:
            faults.add_all("no_mask", files)
        else:
            notes.append(f"the {len(files)} {split} images have no masks, so they are not used")
    return {split: splits[split] for split in SPLITS if split in splits}, notes


def _image_of(mask: Place, by_base: dict[tuple[str, str, str], Place]) -> tuple[int, Place | None]:
    """The image of a mask, and how plain the mask's name is, 0 for the plainest."""
    for rank, suffix in enumerate(SUFFIXES):
        if mask.stem.endswith(suffix):
            base = mask.stem.removesuffix(suffix)
            image = by_base.get((mask.split, mask.rest, base))
            if image is not None and image.file != mask.file:
                return rank, image
    return 0, None


def _bases(stem: str) -> list[str]:
    """What the name of an image may share with that of its mask."""
    ends = (suffix for suffix in _IMAGE_SUFFIXES if stem.endswith(suffix))
    return [stem, *(stem.removesuffix(suffix) for suffix in ends)]
