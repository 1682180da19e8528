"""The image files that annotations name, found among the files of a folder or archive."""

from __future__ import annotations

import posixpath
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from castling.data.split_folders import split_of


def locate(
    files: Iterable[str], wanted: Sequence[str], split: str, folder: str | None = None
) -> list[str | None]:
    """Where the named image files lie.

    Annotation files name images relative to a folder that they do not name. It is the one below
    which most of them exist; of several, one that is called like the split.

    Args:
        files: of the store.
        wanted: names as the annotations have them.
        split: of the images.
        folder: in the store, where it is known; below it, names are taken as they are.

    Returns:
        For each name, the file in the store; None where it is missing.
    """
    known = set(files)
    names = [_clean(name) for name in wanted]
    if folder is not None:
        return [_existing(known, posixpath.normpath(posixpath.join(folder, n))) for n in names]
    by_last: dict[str, list[str]] = defaultdict(list)
    for file in known:
        by_last[posixpath.basename(file)].append(file)
    for form in (lambda name: name, posixpath.basename):  # whole paths may be of another machine
        short = [form(name) for name in names]
        folders: Counter[str] = Counter()
        for name in short:
            for file in by_last.get(posixpath.basename(name), ()):
                if file == name or file.endswith(f"/{name}"):
                    folders[file.removesuffix(name)] += 1
        if folders:
            most = max(folders.values())
            best = min(
                (each for each, count in folders.items() if count == most),
                key=lambda each: (split_of(each) != split, len(each), each),
            )
            return [_existing(known, best + name) for name in short]
    return [None] * len(names)


def _clean(name: str) -> str:
    path = posixpath.normpath(name.replace("\\", "/")).lstrip("/")
    while path.startswith("../"):
        path = path.removeprefix("../")
    return path


def _existing(known: set[str], file: str) -> str | None:
    return file if file in known else None
