"""Files of one content in two splits."""

from __future__ import annotations

from collections.abc import Mapping

from castling.data.errors import DataError
from castling.data.files import FileStore
from castling.data.keys import content_digest


def copies_between_splits(
    store: FileStore, lengths: Mapping[int, list[tuple[str, str]]]
) -> list[str]:
    """Files of one content in two splits; only files of one length are compared.

    Args:
        store: holds the files.
        lengths: split and name of the files of each number of bytes.

    Returns:
        A line for each pair; one file that is listed in two splits is not among them.
    """
    places = []
    for together in lengths.values():
        if len({split for split, _ in together}) < 2:
            continue
        first: dict[str, tuple[str, str]] = {}
        for split, file in together:
            try:
                with store.open(file) as stream:
                    digest = content_digest(stream)
            except DataError:  # it went away meanwhile; it is named when it is read
                continue
            known, other = first.setdefault(digest, (split, file))
            if known != split and other != file:  # one file in two splits is counted by its name
                places.append(f"{file} of {split}, {other} of {known}")
    return places
