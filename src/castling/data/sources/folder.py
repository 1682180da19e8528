"""Images in a folder or a zip file, one folder per class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from castling.data.annotated import ImageFiles, PathConfig
from castling.data.files import open_store
from castling.data.layout import read_layout
from castling.data.registry import DataInfo, register_source
from castling.data.sample import Sample


@dataclass(frozen=True, kw_only=True)
class FolderConfig(PathConfig):
    """Image files below folders of classes.

    Attributes:
        path: a folder or a zip file with ``train/CLASS/FILE`` (and perhaps ``val``, ``test``), or
            with ``CLASS/FILE`` alone; a zip file is read in place.
        layout: whether the top folders are ``splits`` or ``classes``; ``auto`` decides by what lies
            in them, and refuses what may be either, such as classes bus, car and train.
    """

    name: ClassVar[str] = "folder"
    reads: ClassVar[str] = "a folder of images for each class"
    layout: Literal["auto", "splits", "classes"] = "auto"


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
        image = self.image(split, index)
        return Sample(
            image=image,
            target={"label": torch.tensor(self._labels[split][index])},
            index=index,
            name=self.name(split, index),
            original_size=(image.shape[1], image.shape[2]),
        )

    def labels(self, split: str) -> NDArray[np.int64]:
        """(n,) class of every image."""
        return self._labels[split]

    def problems(self) -> list[str]:
        """What was ignored; whatever makes the set useless is refused on opening."""
        return list(self.info.notes)
