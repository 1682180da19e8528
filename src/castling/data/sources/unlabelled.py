"""Images without annotations, for pre-training, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import ImageFiles
from castling.data.decode import image_tensor, read_image, read_size
from castling.data.errors import DataError
from castling.data.files import existing, open_store
from castling.data.formats import is_image
from castling.data.registry import DataInfo, SourceConfig, register_source
from castling.data.sample import Sample
from castling.data.split_folders import SPLIT_NAMES
from castling.utils.checks import check_fields


@dataclass(frozen=True, kw_only=True)
class UnlabelledConfig(SourceConfig):
    """All image files below a folder.

    Attributes:
        path: a folder or zip file with images at any depth; those below folders val and test
            validate and test, all others train.
    """

    name: ClassVar[str] = "unlabelled"
    reads: ClassVar[str] = "all images at any depth, without labels"
    path: str

    def __str__(self) -> str:
        return self.path

    def __post_init__(self) -> None:
        check_fields(self, "data.source")

    def check_exists(self) -> None:
        """Raise FileNotFoundError where there is no such folder or file."""
        existing(self.path)


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
        images = [file for file in listing.files if is_image(file)]
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
            notes=(*listing.notes, *notes),
        )

    def sample(self, split: str, index: int) -> Sample:
        """One image, upright RGB; no target.

        Raises:
            DataError: the file is damaged; it is named.
        """
        name = self.name(split, index)
        with self._store.open(self._files[split][index]) as stream:
            image = image_tensor(read_image(stream, name, self.notice(name)))
        return Sample(
            image=image,
            target={},
            index=index,
            name=name,
            original_size=(image.shape[1], image.shape[2]),
        )

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(height, width) from the file's header, before a camera's orientation is applied.

        Raises:
            DataError: the header is damaged; the file is named.
        """
        name = self.name(split, index)
        with self._store.open(self._files[split][index]) as stream:
            width, height = read_size(stream, name, self.notice(name))
        return height, width

    def labels(self, split: str) -> None:
        """Images are of no class."""

    def problems(self) -> list[str]:
        """What was left out."""
        return list(self.info.notes)


def _split_of(file: str) -> str:
    folders = file.lower().split("/")[:-1]
    return next((SPLIT_NAMES[each] for each in folders if each in SPLIT_NAMES), "train")
