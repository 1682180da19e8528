"""What sources of image files with annotations share: their configuration, and the files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from jsonargparse.typing import ClosedUnitInterval
from torchvision import tv_tensors

from castling.data.decode import image_tensor, read_image, read_size
from castling.data.files import FileStore, existing
from castling.data.keys import content_digest
from castling.data.registry import SourceConfig
from castling.utils.checks import check_fields
from castling.utils.text import printable


@dataclass(frozen=True, kw_only=True)
class PathConfig(SourceConfig):
    """Base of the configurations of sources that open a path.

    Attributes:
        path: what to open.
    """

    path: str

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


@dataclass(frozen=True, kw_only=True)
class AnnotatedConfig(PathConfig):
    """Base of the configurations of sources whose files have annotations.

    Attributes:
        path: what to open.
        leave_out: the share of objects (or images) that one kind of fault may leave out, with a
            note; above it the fault is an error.
    """

    leave_out: ClosedUnitInterval = 0.001


class ImageFiles:
    """Image files of each split, and what identifies them.

    Args:
        store: holds them.
        files: names in the store by split.
    """

    def __init__(self, store: FileStore, files: Mapping[str, Sequence[str]]) -> None:
        self._store, self._files = store, files
        #: What was noticed while images were read, such as damaged EXIF; by file.
        self.noticed: dict[str, str] = {}

    def name(self, split: str, index: int) -> str:
        """Path of the file, or of the zip file and the entry in it; bytes beyond UTF-8 escaped."""
        return self._store.describe(self._files[split][index])

    def path(self, split: str, index: int) -> str:
        """Path of the file in the folder or zip file."""
        return printable(self._files[split][index])

    def content(self, split: str, index: int) -> str:
        """Digest of the file's bytes.

        Raises:
            DataError: the file cannot be read; it is named.
        """
        with self._store.open(self._files[split][index]) as stream:
            return content_digest(stream)

    def notice(self, name: str) -> Callable[[str], None]:
        """Takes what is noticed about a file."""
        return lambda text: self.noticed.update({name: text})

    def image(self, split: str, index: int) -> tv_tensors.Image:
        """(3, H, W) uint8, upright RGB.

        Raises:
            DataError: the file is damaged; it is named.
        """
        name = self.name(split, index)
        with self._store.open(self._files[split][index]) as stream:
            return image_tensor(read_image(stream, name, self.notice(name)))

    def size(self, split: str, index: int) -> tuple[int, int]:
        """(height, width) from the file's header, before a camera's orientation is applied.

        Raises:
            DataError: the header is damaged; the file is named.
        """
        name = self.name(split, index)
        with self._store.open(self._files[split][index]) as stream:
            width, height = read_size(stream, name, self.notice(name))
        return height, width
