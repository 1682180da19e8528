"""Objects in COCO's format: JSON files and images, in a folder or a zip file."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from castling.data.annotated import AnnotatedConfig
from castling.data.detection.coco_layout import find_annotations
from castling.data.detection.read_coco import read_coco
from castling.data.detection.source import AnnotatedImages
from castling.data.errors import DataError
from castling.data.files import existing, open_store
from castling.data.registry import register_source


@dataclass(frozen=True, kw_only=True)
class CocoConfig(AnnotatedConfig):
    """Images with boxes, and masks where every object has one, in COCO's format.

    Attributes:
        path: a folder or zip file with ``instances_train.json`` (and perhaps ``instances_val.json``
            and ``instances_test.json``) at any depth, or one such file.
        train: the training annotations below ``path``; empty: found by their name.
        val: as ``train``.
        test: as ``train``.
        images: folder of the images below ``path``, in which ``{split}`` stands for train, val or
            test; empty: the folder in which the named files are.
        leave_out: the share of objects (or images) that one kind of fault may leave out, with a
            note; above it the fault is an error.
    """

    name: ClassVar[str] = "coco"
    reads: ClassVar[str] = "objects in COCO's format"
    train: str = ""
    val: str = ""
    test: str = ""
    images: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.val or self.test) and not self.train:
            raise ValueError("data.source names annotations for val or test: name those for train")


@register_source(CocoConfig)
class CocoSource(AnnotatedImages):
    """See :class:`CocoConfig`; classes are in the order of the category ids.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no annotations, or no training images with them.
    """

    def __init__(self, config: CocoConfig) -> None:
        path = existing(config.path)
        notes: list[str] = []
        if path.suffix.lower() == ".json":
            store = open_store(_root(path))
            files = {"train": path.absolute().relative_to(_root(path)).as_posix()}
        else:
            store = open_store(path)
            files = {
                split: posixpath.normpath(name)
                for split in ("train", "val", "test")
                if (name := getattr(config, split))
            }
            known = store.listing().files
            for split, name in files.items():
                if name not in known:
                    raise DataError(f"data.source.{split}: there is no {name} in {config.path}")
        if not files:
            files, notes = find_annotations(store)
        order = [split for split in ("train", "val", "test") if split in files]
        read = read_coco(
            store, {split: files[split] for split in order}, config.images, tuple(notes)
        )
        super().__init__(str(config), read, config.leave_out)


def _root(file: Path) -> Path:
    """The folder below which the images of a lone annotation file are looked for."""
    folder = file.absolute().parent
    return folder.parent if folder.name.lower() == "annotations" else folder
