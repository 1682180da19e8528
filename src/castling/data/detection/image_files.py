"""Image files against what their annotations say about them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping

from castling.data.copies import copies_between_splits
from castling.data.decode import read_image, read_orientation
from castling.data.detection.table import Table
from castling.data.errors import DataError
from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.problems import Depth
from castling.data.verify import visit_all


def check_files(
    store: FileStore, tables: Mapping[str, Table], splits: Collection[str], depth: Depth
) -> tuple[Faults, list[str]]:
    """Sizes, orientations and copies of the image files.

    Args:
        store: holds them.
        tables: by split.
        splits: which of them to read.
        depth: ``headers``, or ``full`` to decode every image; ``none`` reads nothing.

    Returns:
        The faults, and a complaint for each file that cannot be read.
    """
    faults, complaints = Faults(), []
    lengths: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for split in splits if depth != "none" else ():
        table = tables[split]
        found: dict[int, tuple[str, str]] = {}
        bytes_of: dict[int, int] = {}

        def visit(
            index: int,
            table: Table = table,
            found: dict[int, tuple[str, str]] = found,
            bytes_of: dict[int, int] = bytes_of,
        ) -> None:
            file = table.files[index]
            name = store.describe(file)
            with store.open(file) as stream:
                stored, upright, turned = read_orientation(stream, name)
                if depth == "full":
                    stream.seek(0)
                    read_image(stream, name)
                bytes_of[index] = stream.seek(0, 2)
            height, width = table.sizes[index].tolist()
            stated = (width, height)
            if height and width and stated not in (stored, upright):
                shown = "×".join(map(str, stored))
                found[index] = ("other_size", f"{name}: stated {width}×{height}, is {shown}")
            elif turned:
                found[index] = ("rotated", name)

        complaints += visit_all(len(table), visit)
        for index in sorted(found):
            faults.add(*found[index])
        for index in sorted(bytes_of):
            lengths[bytes_of[index]].append((split, table.files[index]))
    faults.add_all("overlap", copies_between_splits(store, lengths))
    return faults, complaints


def size_in_header(store: FileStore, file: str) -> tuple[int, int]:
    """(height, width) of an upright image; zeros where it is damaged, which is reported later."""
    try:
        with store.open(file) as stream:
            _, (width, height), _ = read_orientation(stream, file)
    except DataError:
        return 0, 0
    return height, width
