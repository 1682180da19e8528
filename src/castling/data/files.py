"""Folders and zip files behind one interface; zip files are read in place."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Protocol

from castling.data.decode import open_file
from castling.data.errors import DataError
from castling.data.formats import is_image
from castling.data.listing import Listing, is_foreign, list_folder
from castling.data.zip_store import ZipStore
from castling.utils.text import printable


class FileStore(Protocol):
    """A tree of files whose names are relative and joined by ``/``."""

    def listing(self) -> Listing:
        """All files and folders but hidden and foreign ones."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A seekable binary stream of one file."""
        ...

    def describe(self, name: str) -> str:
        """The name by which a person finds the file."""
        ...


def existing(path: str | Path) -> Path:
    """The path with ``~`` written out; FileNotFoundError where there is nothing."""
    path = Path(path).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"there is no folder or zip file at {path}; source must be digits, digit_scenes, a "
            "folder, a zip file, a COCO JSON file, data.yaml or torchvision:NAME"
        )
    return path


def open_store(path: str | Path) -> FileStore:
    """A folder or a zip file as a store.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        PermissionError: it may not be read.
        DataError: it is neither a folder nor a sound zip file.
    """
    path = existing(path)
    if path.is_dir():
        return FolderStore(path)
    if not path.is_file():
        raise DataError(f"{path} is a pipe, socket or device; name a folder or a zip file")
    return ZipStore(path)


def list_images(folder: Path) -> tuple[list[Path], list[str]]:
    """The images at any depth below a folder, sorted, and notes about what was left out.

    Raises:
        PermissionError: a folder may not be read.
    """
    listing = list_folder(folder)
    images = [file for file in listing.files if is_image(file)]
    copies, notes = listing.without_copies(images)
    found = [folder / file for file in images if file not in copies]
    return sorted(found), listing.notes + notes


def is_listed(path: Path, folder: Path) -> bool:
    """Whether :func:`list_images` of ``folder`` finds this file, or the images in this folder.

    Real paths count. Hidden and foreign files and those that are no images are not found there.
    """
    inner = os.path.isdir(path)
    if not inner and not os.path.isfile(path):
        return False
    root = Path(os.path.realpath(folder))
    # A link within the folder counts, and so does one from elsewhere to a file in it.
    for place in (Path(os.path.realpath(path.parent)) / path.name, Path(os.path.realpath(path))):
        if root not in place.parents:
            continue
        *above, last = place.relative_to(root).parts
        foreign = is_foreign(last, inner) or any(is_foreign(name, True) for name in above)
        if not foreign and (inner or is_image(last)):
            return True
    return False


class FolderStore:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._listing: Listing | None = None

    def listing(self) -> Listing:
        """All files and folders at the first call; see :func:`castling.data.listing.list_folder`.

        Raises:
            PermissionError: a folder may not be read.
        """
        if self._listing is None:
            self._listing = list_folder(self.root)
        return self._listing

    def open(self, name: str) -> BinaryIO:
        """A stream of one file.

        Raises:
            DataError: the file cannot be opened.
        """
        try:
            return open_file(self.root / name)
        except OSError as error:
            raise DataError(f"{self.describe(name)} cannot be opened: {error.strerror}") from error

    def describe(self, name: str) -> str:
        """The file's path."""
        return printable(str(self.root / name))
