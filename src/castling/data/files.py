"""Folders and zip files behind one interface; zip files are read in place."""

from __future__ import annotations

import io
import os
import threading
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from castling.data.errors import DataError


class FileStore(Protocol):
    """A tree of files whose names are relative and joined by ``/``."""

    def listing(self) -> tuple[list[str], list[str]]:
        """Sorted names of all files and of all folders; hidden ones are left out."""
        ...

    def open(self, name: str) -> BinaryIO:
        """A seekable binary stream of one file."""
        ...

    def describe(self, name: str) -> str:
        """The name by which a person finds the file."""
        ...


def open_store(path: str | Path) -> FileStore:
    """A folder or a zip file as a store.

    Raises:
        FileNotFoundError: there is nothing at ``path``.
        PermissionError: it may not be read.
        DataError: it is neither a folder nor a sound zip file.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        return FolderStore(path)
    if not path.exists():
        raise FileNotFoundError(
            f"there is no folder or zip file at {path}; source must be digits, a folder, a zip "
            "file or torchvision:NAME"
        )
    return ZipStore(path)


class FolderStore:
    """Files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def listing(self) -> tuple[list[str], list[str]]:
        """Sorted names of all files and folders; links are followed.

        Raises:
            PermissionError: a folder may not be read.
        """
        files, folders = [], []
        for parent, children, names in os.walk(self.root, onerror=_unreadable, followlinks=True):
            children[:] = [child for child in children if not _hidden(child)]
            relative = Path(parent).relative_to(self.root)
            folders += [(relative / child).as_posix() for child in children]
            files += [(relative / name).as_posix() for name in names if not _hidden(name)]
        return sorted(files), sorted(folders)

    def open(self, name: str) -> BinaryIO:
        """A stream of one file.

        Raises:
            DataError: the file cannot be opened.
        """
        try:
            return open(self.root / name, "rb")
        except OSError as error:
            raise DataError(f"{self.describe(name)} cannot be opened: {error.strerror}") from error

    def describe(self, name: str) -> str:
        """The file's path."""
        return str(self.root / name)


class ZipStore:
    """Files in a zip file, never unpacked.

    Every process opens its own handle at the first read, since the position in a handle that was
    inherited from a parent process is shared with it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = -1
        self._lock = threading.Lock()
        self._entries: dict[str, str] = {}
        folders: set[str] = set()
        for entry in self._handle().namelist():
            name = entry.replace("\\", "/")  # some Windows programs write backslashes
            parts = name.rstrip("/").split("/")
            if any(_hidden(part) for part in parts):
                continue
            folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
            if name.endswith("/"):
                folders.add("/".join(parts))
            else:
                self._entries[name] = entry
        self._folders = sorted(folders)

    def _handle(self) -> zipfile.ZipFile:
        with self._lock:
            if self._archive is None or self._owner != os.getpid():
                try:
                    self._archive = zipfile.ZipFile(self.path)
                except zipfile.BadZipFile as error:
                    raise DataError(
                        f"{self.path} is not a whole zip file ({error}): it may be cut off or of "
                        "another kind; copy or download it again"
                    ) from error
                self._owner = os.getpid()
            return self._archive

    def listing(self) -> tuple[list[str], list[str]]:
        """Sorted names of all files and folders in the archive."""
        return sorted(self._entries), self._folders

    def open(self, name: str) -> BinaryIO:
        """A stream of one entry, whose checksum has been compared.

        Raises:
            DataError: the entry is damaged, encrypted or compressed in an unknown way.
        """
        try:
            return io.BytesIO(self._handle().read(self._entries[name]))
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
            raise DataError(
                f"{self.describe(name)} cannot be read ({error}); the zip file is damaged or "
                "encrypted: copy or make it again"
            ) from error

    def describe(self, name: str) -> str:
        """The archive's path and the entry's name."""
        return f"{self.path}:{name}"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None, "_owner": -1, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})


def _hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"


def _unreadable(error: OSError) -> None:
    raise type(error)(error.errno, f"cannot read the folder: {error.strerror}", error.filename)
