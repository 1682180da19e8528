"""Which source opens a path, told from a look at a few of its files."""

from __future__ import annotations

import os
from collections.abc import Callable
from itertools import islice
from pathlib import Path

from castling.data.detection.coco_layout import is_coco
from castling.data.detection.voc_layout import voc_files
from castling.data.detection.yolo_layout import is_yolo
from castling.data.errors import DataError
from castling.data.files import FileStore, FolderStore, open_store
from castling.data.listing import Listing, is_foreign
from castling.data.segmentation.read_ade20k import is_ade20k
from castling.data.segmentation.read_cityscapes import is_cityscapes
from castling.data.segmentation.read_masks import is_masks
from castling.data.segmentation.read_panoptic import find_panoptic
from castling.data.segmentation.read_voc_masks import is_voc_masks

#: Files and folders that are looked at: at the top, and in each folder below.
_BREADTH = (4096, 64, 64, 64)


class _Glimpse(FolderStore):
    """A folder of which the first files are listed, however many there are."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._listing = found = Listing()
        folders = [""]
        for breadth in _BREADTH:
            inner: list[str] = []
            for folder in folders[: _BREADTH[-1]]:
                inner += self._look(folder, breadth, found)
            folders = inner
        found.files.sort()

    def _look(self, folder: str, breadth: int, found: Listing) -> list[str]:
        """List the beginning of a folder; its folders."""
        folders, prefix = [], f"{folder}/" if folder else ""
        try:
            entries = sorted(islice(os.scandir(self.root / folder), breadth), key=lambda e: e.name)
        except OSError:
            return []
        for entry in entries:
            if is_foreign(entry.name, entry.is_dir()):
                continue
            if entry.is_dir():
                folders.append(prefix + entry.name)
            elif entry.is_file():
                found.files.append(prefix + entry.name)
        found.folders += folders
        return folders


#: What each source's folders are known by, in this order: objects come before masks, and layouts
#: of one data set before the general one.
_LAYOUTS: tuple[tuple[str, Callable[[FileStore], object]], ...] = (
    ("coco", is_coco),
    ("voc", voc_files),
    ("yolo", is_yolo),
    ("panoptic", find_panoptic),
    ("cityscapes", is_cityscapes),
    ("ade20k", is_ade20k),
    ("voc_masks", is_voc_masks),
    ("masks", is_masks),
)


def recognise(path: str) -> str:
    """The source that opens a path; empty where it holds no annotations that are known.

    Args:
        path: of a folder, a zip file, or an annotation file of COCO or data.yaml of YOLO.
    """
    place = Path(path).expanduser()
    ending = place.suffix.lower()
    try:
        if place.is_file() and ending in (".json", ".yaml", ".yml"):
            return "coco" if ending == ".json" else "yolo"
        if not place.exists():
            return ""
        store: FileStore = _Glimpse(place) if place.is_dir() else open_store(place)
        return next((name for name, known in _LAYOUTS if known(store)), "")
    except (DataError, OSError):  # whoever opens it says what is wrong
        return ""
