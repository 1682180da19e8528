"""Images without annotations, for pre-training, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import ImageFiles, PathConfig
from castling.data.errors import DataError
from castling.data.files import open_store
from castling.data.formats import is_image
from castling.data.registry import DataInfo, register_source
from castling.data.sample import Sample
from castling.data.segmentation.pairs import find_places
from castling.data.segmentation.read_masks import is_masks
from castling.data.split_folders import SPLIT_NAMES


@dataclass(frozen=True, kw_only=True)
class UnlabelledConfig(PathConfig):
    """All image files below a folder.

    Attributes:
        path: a folder or zip file with images at any depth; those below folders val and test
            validate and test, all others train. Masks of images (see ``masks``) are left out.
    """

    name: ClassVar[str] = "unlabelled"
    reads: ClassVar[str] = "all images at any depth, without labels"


@register_source(UnlabelledConfig)
class UnlabelledSource(ImageFiles):
    """See :class:`UnlabelledConfig`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        PermissionError: it may not be read.
        DataError: the zip file is damaged, or there are no images to train on.
    """

    def __init__(self, config: UnlabelledConfig) -> None:
        store = open_store(config.path)
        listing = store.listing()
        masks = {place.file for place in find_places(listing.files)[1]} if is_masks(store) else ()
        images = [file for file in listing.files if is_image(file) and file not in masks]
        copies, notes = listing.without_copies(images)
        files: dict[str, list[str]] = {"train": [], "val": [], "test": []}
        for file in images:
            if file not in copies:
                files[_split_of(file)].append(file)
        if not files["train"]:
            raise DataError(f"there are no images to train on in {config.path}")
        super().__init__(store, files)
        self.info = DataInfo(
            classes=[],
            splits={split: len(each) for split, each in files.items() if each},
            kind="unlabelled",
            test_fraction=0.0,  # images to learn from should not lie idle
            notes=(*listing.notes, *notes, *([f"left out {len(masks)} masks"] if masks else [])),
        )

    def sample(self, split: str, index: int) -> Sample:
        """One image, upright RGB; no target.

        Raises:
            DataError: the file is damaged; it is named.
        """
        image = self.image(split, index)
        return Sample(
            image=image,
            target={},
            index=index,
            name=self.name(split, index),
            original_size=(image.shape[1], image.shape[2]),
        )

    def labels(self, split: str) -> None:
        """Images are of no class."""

    def problems(self) -> list[str]:
        """What was left out."""
        return list(self.info.notes)


def _split_of(file: str) -> str:
    folders = file.lower().split("/")[:-1]
    return next((SPLIT_NAMES[each] for each in folders if each in SPLIT_NAMES), "train")
