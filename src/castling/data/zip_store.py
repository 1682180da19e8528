"""Files in a zip file, read in place."""

from __future__ import annotations

import contextlib
import io
import os
import stat
import threading
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

from castling.data.errors import DataError
from castling.data.listing import Listing, is_foreign, note_foreign
from castling.utils.text import few, printable

MAX_FILE_BYTES = 10**9
"""Largest file in an archive, unpacked: an entry that claims more is taken for a zip bomb."""

_ENCRYPTED, _UTF8 = 0x1, 0x800  # bits of an entry's flags (APPNOTE.TXT, 4.4.4)


class ZipStore:
    """Files in a zip file, never unpacked.

    Every process opens its own handle at the first read, since the position in a handle that was
    inherited from a parent process is shared with it.

    Raises:
        DataError: the archive is damaged or encrypted.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._archive: zipfile.ZipFile | None = None
        self._owner = -1
        self._lock = threading.Lock()
        self._entries: dict[str, zipfile.ZipInfo] = {}
        self._listing = Listing()
        folders: set[str] = set()
        for entry in self._handle().infolist():
            self._take(entry, folders)
        encrypted = [name for name, entry in self._entries.items() if entry.flag_bits & _ENCRYPTED]
        if encrypted:
            raise DataError(
                f"{path} is encrypted ({few(map(printable, encrypted), 3)}); unpack it and name "
                "the folder, or pack it without a password"
            )
        self._listing.files = sorted(self._entries)
        self._listing.folders = sorted(folders)

    def _take(self, entry: zipfile.ZipInfo, folders: set[str]) -> None:
        """Take one entry into the listing, or say why not."""
        name = _name(entry)
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or (parts and parts[0].endswith(":")):
            self._listing.leave_out("entries that point out of the archive", printable(name))
            return
        if not parts:  # "./" itself
            return
        directory = name.endswith("/")
        for depth, part in enumerate(parts):
            folder = directory or depth < len(parts) - 1
            if is_foreign(part, folder):
                if not (directory and folder):  # count a foreign folder by its files
                    note_foreign(self._listing, part, folder)
                return
        if stat.S_ISLNK(entry.external_attr >> 16):
            self._listing.leave_out("links in the archive", printable(name))
            return
        folders.update("/".join(parts[:depth]) for depth in range(1, len(parts)))
        whole = "/".join(parts)
        if directory:
            folders.add(whole)
            return
        if whole in self._entries:
            self._listing.leave_out("earlier entries of the same name", printable(whole))
        self._entries[whole] = entry

    def _handle(self) -> zipfile.ZipFile:
        with self._lock:
            if self._archive is None or self._owner != os.getpid():
                try:
                    self._archive = zipfile.ZipFile(self.path)
                except Exception as error:  # a damaged directory raises struct.error and others
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    raise DataError(
                        f"{self.path} is not a whole zip file ({error}): it may be cut off or of "
                        "another kind; copy or download it again"
                    ) from error
                self._owner = os.getpid()
            return self._archive

    def listing(self) -> Listing:
        """All files and folders in the archive; links are left out."""
        return self._listing

    def open(self, name: str) -> BinaryIO:
        """A stream of one entry, whose checksum has been compared.

        Raises:
            DataError: the entry is damaged, too large or compressed in an unknown way.
        """
        entry = self._entries[name]
        if entry.file_size > MAX_FILE_BYTES:
            raise DataError(
                f"{self.describe(name)} claims {entry.file_size:,} bytes unpacked from "
                f"{entry.compress_size:,}, above the limit of {MAX_FILE_BYTES:,}; remove it"
            )
        try:
            # Asking for a number of bytes stops unpacking there: an entry may hold more than it
            # claims.
            with self._handle().open(entry) as stream:
                return io.BytesIO(stream.read(entry.file_size + 1))
        except Exception as error:  # damage raises the errors of every compression
            raise DataError(
                f"{self.describe(name)} cannot be read ({error}); the zip file is damaged or "
                "packed in an unknown way: copy or make it again"
            ) from error

    def describe(self, name: str) -> str:
        """The archive's path and the entry's name."""
        return printable(f"{self.path}:{name}" if name else str(self.path))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_archive": None, "_owner": -1, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state | {"_lock": threading.Lock()})


def _name(entry: zipfile.ZipInfo) -> str:
    """An entry's name, joined by ``/``.

    Many programs write UTF-8 without marking it as such; Python reads those names as code page 437.
    """
    name = entry.filename
    if not entry.flag_bits & _UTF8 and not name.isascii():
        with contextlib.suppress(UnicodeError):  # the code page, or another that nothing names
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/")  # some Windows programs write backslashes
