"""Files written whole or not at all.

Every file of the package goes through :func:`replacing`, or :func:`replacing_together` where
several belong together: the bytes are written beside the target and moved over it, so that a reader
never sees half a file and an interruption loses nothing.
"""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_OPEN_FILES = ("/dev", "/dev/fd", "/proc/self/fd")


@contextmanager
def naming(path: str | os.PathLike[str], temporary: str | os.PathLike[str] = "") -> Iterator[None]:
    """Let system errors that name no file, or one in ``temporary``, name ``path``.

    Writing to an open file reports a full disk without saying which file it was.

    Raises:
        OSError: as the body, with the name.
    """
    try:
        yield
    except OSError as error:
        hidden = bool(temporary) and str(error.filename).startswith(str(temporary))
        if error.filename is None or hidden:
            number = error.errno or errno.EIO
            raise type(error)(number, error.strerror or str(error), str(path)) from error
        raise


def is_stream(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a device, a pipe or an open file, such as ``/dev/stdout``.

    These are written to; another file must never take their place.
    """
    path = Path(path)
    if str(path.absolute().parent) in _OPEN_FILES:  # links that may lead to plain files
        return path.exists()
    return path.exists() and not path.is_file() and not path.is_dir()


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path in the same folder that takes the place of ``path`` on success.

    Missing folders are made. When the body raises, the temporary file is removed and ``path`` is
    left as it was. A device or pipe is given itself: it is written to, not replaced.

    Raises:
        OSError: the disk is full or the folder may not be written; the message names ``path``.
    """
    path = Path(path)
    if is_stream(path):
        with naming(path):
            yield path
        return
    # The name is random, so that two processes writing one file do not write into one another.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.part")
    try:
        with naming(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_together(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder inside ``folder`` whose files move into ``folder`` together on success.

    For formats of several files, such as a graph and its weights. When the body raises or a file
    cannot be moved, nothing new is left and files of the same names are as they were. A process
    killed while several files are being moved leaves none of these names rather than a mixture.

    Raises:
        OSError: the disk is full or the folder may not be written; the message names ``folder``.
    """
    folder = Path(folder)
    with naming(folder, folder / "."):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".", suffix=".part", dir=folder))
    try:
        with naming(folder, temporary):
            yield temporary
            _move_together(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _move_together(source: Path, folder: Path) -> None:
    names = sorted(path.name for path in source.iterdir())
    for name in names:
        if (folder / name).is_dir() and not (source / name).is_dir():
            raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", str(folder / name))
        if is_stream(folder / name):
            raise FileExistsError(errno.EEXIST, "is a device or pipe", str(folder / name))
    if len(names) == 1 and not (folder / names[0]).is_dir():
        os.replace(source / names[0], folder / names[0])
        return
    old = source / ".old"
    old.mkdir()
    set_aside: list[str] = []
    moved: list[str] = []
    try:
        for name in names:
            if (folder / name).exists():
                os.replace(folder / name, old / name)
                set_aside.append(name)
        for name in names:
            os.replace(source / name, folder / name)
            moved.append(name)
    except BaseException:
        for name in moved:
            os.replace(folder / name, source / name)
        for name in set_aside:
            os.replace(old / name, folder / name)
        raise


def refuse_existing(paths: Iterable[str | os.PathLike[str]], overwrite: bool) -> None:
    """Raise FileExistsError where one of the files is there and ``overwrite`` is False."""
    for path in paths:
        if not overwrite and os.path.lexists(path):
            raise FileExistsError(
                f"{path} exists: choose another name, or replace it with overwrite=True "
                "(--overwrite)"
            )


def write_bytes(path: str | os.PathLike[str], content: bytes) -> None:
    """Write bytes."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write text as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write indented JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_csv(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write a table with a header; missing values stay empty."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def parse_json(text: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: it is not JSON, or nested too deeply, which ``json`` alone reports otherwise.
    """
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("its brackets are nested too deeply") from error


def read_csv(path: str | os.PathLike[str]) -> list[dict[str, str]]:
    """The rows of a table that :func:`write_csv` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is empty, half or no table; the message names it.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        rows = list(csv.DictReader(io.StringIO(text)))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is no table ({error})") from error
    if not text.endswith("\n") or any(None in row or None in row.values() for row in rows):
        raise ValueError(f"{path} is empty or damaged: a row is not whole")
    return rows
