"""Images in a folder or a zip file, one folder per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from castling.data.annotated import ImageFiles
from castling.data.decode import image_tensor, read_image, read_size
from castling.data.files import existing, open_store
from castling.data.layout import read_layout
from castling.data.registry import DataInfo, SourceConfig, register_source
from castling.data.sample import Sample
from castling.utils.checks import check_fields
from castling.utils.text import printable


@dataclass(frozen=True, kw_only=True)
class FolderConfig(SourceConfig):
    """Image files below folders of classes.

    Attributes:
        path: a folder or a zip file with ``train/CLASS/FILE`` (and perhaps ``val``, ``test``), or
            with ``CLASS/FILE`` alone; a zip file is read in place.
        layout: whether the top folders are ``splits`` or ``classes``; ``auto`` decides by what lies
            in them, and refuses what may be either, such as classes bus, car and train.
    """

    name: ClassVar[str] = "folder"
    reads: ClassVar[str] = "a folder of images for each class"
    path: str
    layout: Literal["auto", "splits", "classes"] = "auto"

    def __str__(self) -> str:
        return self.path

    def __post_init__(self) -> None:
        if not isinstance(self.path, str) or not self.path:
            raise ValueError(
                f"data.source.path is {self.path!r}; name a folder or a zip file of images"
            )
        check_fields(self, "data.source")
        if any(0xD800 <= ord(letter) <= 0xDFFF for letter in self.path):
            raise ValueError(
                f"data.source.path {printable(self.path)} is not UTF-8, so no recipe can hold it; "
                "rename the folder"
            )

    def check_exists(self) -> None:
        """Raise FileNotFoundError where there is no such folder or file."""
        existing(self.path)


@register_source(FolderConfig)
class FolderSource(ImageFiles):
    """Image files with a class each; see :func:`castling.data.layout.read_layout`.

    Raises:
        FileNotFoundError: there is nothing at the path.
        PermissionError: it may not be read.
        DataError: the zip file is damaged, or the folders do not make a classification set.
    """

    def __init__(self, config: FolderConfig) -> None:
        store = open_store(config.path)
        layout = read_layout(store, config.layout)
        files = {split: [file for file, _ in pairs] for split, pairs in layout.splits.items()}
        super().__init__(store, files)
        self._labels = {
            split: np.array([label for _, label in pairs], dtype=np.int64)
            for split, pairs in layout.splits.items()
        }
        self.info = DataInfo(
            classes=layout.classes,
            splits={split: len(files) for split, files in self._files.items()},
            notes=layout.notes,
        )

    def sample(self, split: str, index: int) -> Sample:
        """One image, upright RGB; ``target["label"]`` is its class.

        Raises:
            DataError: the file is damaged; it is named.
        """
        name = self.name(split, index)
        with self._store.open(self._files[split][index]) as stream:
            image = image_tensor(read_image(stream, name, self.notice(name)))
        return Sample(
            image=image,
            target={"label": torch.tensor(self._labels[split][index])},
            index=index,
            name=name,
            original_size=(image.shape[1], image.shape[2]),
        )

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(height, width) from the file's header, before a camera's orientation is applied.

        Raises:
            DataError: the header is damaged; the file is named.
        """
        with self._store.open(self._files[split][index]) as stream:
            name = self.name(split, index)
            width, height = read_size(stream, name, self.notice(name))
        return height, width

    def labels(self, split: str) -> NDArray[np.int64]:
        """(n,) class of every image."""
        return self._labels[split]

    def problems(self) -> list[str]:
        """What was ignored; whatever makes the set useless is refused on opening."""
        return list(self.info.notes)
