"""What a reader made of a folder of images and masks."""

from __future__ import annotations

from dataclasses import dataclass, field

from castling.data.faults import Faults
from castling.data.files import FileStore
from castling.data.segmentation.encoding import Encoding
from castling.data.segmentation.naming import Numbering
from castling.data.segmentation.pairs import Pairs


@dataclass
class Masks:
    """Pairs of files, and what their masks mean.

    Attributes:
        store: holds images and masks.
        pairs: images and masks by split, ``train`` first; empty where nothing fits.
        classes: names in the order of the labels; None: numbered as the masks number them.
        encoding: what numbers and colours mean; with ``classes`` alone.
        numbering: what of the numbers is no class; without ``classes`` alone.
        faults: of folders and annotation files.
        notes: what a person should know about how they were read.
        read_as: the same in a few words, for reports.
    """

    store: FileStore
    pairs: dict[str, Pairs]
    classes: list[str] | None
    encoding: Encoding = field(default_factory=Encoding)
    numbering: Numbering = field(default_factory=Numbering)
    faults: Faults = field(default_factory=Faults)
    notes: tuple[str, ...] = ()
    read_as: str = ""
