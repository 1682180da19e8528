"""Folders of images and masks as people have them; see :mod:`castling.data.segmentation.pairs`."""

from __future__ import annotations

import posixpath
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field

from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.formats import is_image
from castling.data.segmentation.class_files import find_class_file, read_class_file
from castling.data.segmentation.encoding import Encoding
from castling.data.segmentation.naming import (
    Numbering,
    from_colours,
    from_file,
    numbered_encoding,
)
from castling.data.segmentation.pairs import (
    SPEAKING_SUFFIXES,
    Pairs,
    Place,
    find_places,
    match_pairs,
    places_below,
)
from castling.data.segmentation.reading import Masks

_ABOUT_HALF = (0.25, 0.75)


@dataclass(frozen=True)
class MaskOptions:
    """What the user says; see :class:`castling.data.sources.masks.MasksConfig`."""

    images: str = ""
    masks: str = ""
    classes: tuple[str, ...] = ()
    colours: Mapping[str, str] | None = None
    numbering: Numbering = field(default_factory=Numbering)


def is_masks(store: FileStore) -> bool:
    """Whether folders of images and masks stand side by side, or masks beside images."""
    images, masks = find_places(store.listing().files)
    if any(place.role == "mask" for place in masks):
        return bool(
            {(place.split, place.rest) for place in images}
            & {(place.split, place.rest) for place in masks}
        )
    # Only some of the files of a large folder are looked at, so that pairs may be torn apart; but
    # about half of every folder are masks, as of no folder of a class.
    by_folder: dict[str, list[bool]] = defaultdict(list)
    for file in filter(is_image, store.listing().files):
        stem = posixpath.splitext(posixpath.basename(file))[0]
        by_folder[posixpath.dirname(file)].append(stem.endswith(SPEAKING_SUFFIXES))
    shares = [sum(each) / len(each) for each in by_folder.values()]
    return bool(shares) and all(_ABOUT_HALF[0] <= share <= _ABOUT_HALF[1] for share in shares)


def read_masks(store: FileStore, options: MaskOptions) -> Masks:
    """Read a folder of images and masks.

    Raises:
        DataError: there are no masks, or the file that names classes cannot be read.
        ValueError: options do not fit.
    """
    faults = Faults()
    images, masks = _places(store, options)
    pairs, notes = match_pairs(images, masks, faults)
    pairs, more = only_as_training(pairs)
    classes, encoding, said = _classes(store, options)
    return Masks(
        store,
        pairs,
        classes,
        encoding,
        options.numbering,
        faults,
        (*notes, *more),
        f"{folders_of(pairs)}; {said}",
    )


def _places(store: FileStore, options: MaskOptions) -> tuple[list[Place], list[Place]]:
    files = store.listing().files
    if options.images:
        images = places_below(files, options.images, "image")
        masks = places_below(files, options.masks, "mask")
        for option, places in (("images", images), ("masks", masks)):
            if not places:
                raise DataError(
                    f"data.source.{option}: there are no images in "
                    f"{store.describe(getattr(options, option))}"
                )
        return images, masks
    images, masks = find_places(files)
    if not masks or not images:
        raise DataError(
            f"no images with masks in {store.describe('')}: by their names there are "
            f"{len(images)} images and {len(masks)} masks; put them into images/train and "
            "masks/train (and val, test), masks called like their images, or name the folders "
            "with source.images and source.masks"
        )
    return images, masks


def _classes(store: FileStore, options: MaskOptions) -> tuple[list[str] | None, Encoding, str]:
    """Names, their encoding, and where they come from; no names: as the masks number them."""
    numbering = options.numbering
    if options.colours:
        names, encoding = from_colours(options.colours, options.classes, "data.source.colours")
        said = "classes by source.colours"
    elif options.classes:
        names = list(options.classes)
        encoding, said = numbered_encoding(len(names), numbering), "classes by source.classes"
    else:
        file = find_class_file(store.listing().files)
        if file is None:
            return None, Encoding(), "classes numbered as in the masks"
        names, encoding, left_out = from_file(read_class_file(store, file), numbering)
        said = f"classes by {file}" + "".join(f", {name} is no class" for name in left_out)
    return names, encoding, said


def only_as_training(pairs: dict[str, Pairs]) -> tuple[dict[str, Pairs], list[str]]:
    """Let a lone split train."""
    if len(pairs) == 1 and "train" not in pairs:
        ((split, only),) = pairs.items()
        return {"train": only}, [f"there is a {split} split only, so it serves for training"]
    return pairs, []


def folders_of(pairs: Mapping[str, Pairs]) -> str:
    """Where images and masks lie, by an example."""
    for each in pairs.values():
        image, mask = each.images[0], each.masks[0]
        same = posixpath.dirname(image) == posixpath.dirname(mask)
        return f"{image} with {posixpath.basename(mask) if same else mask}"
    return "no pairs"
