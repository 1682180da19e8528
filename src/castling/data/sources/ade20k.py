"""ADE20K's 150 classes of the scene-parsing benchmark, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import AnnotatedConfig
from castling.data.files import open_store
from castling.data.registry import register_source
from castling.data.segmentation.read_ade20k import read_ade20k
from castling.data.segmentation.source import MaskedImages


@dataclass(frozen=True, kw_only=True)
class Ade20kConfig(AnnotatedConfig):
    """Images and masks of ADEChallengeData2016; 0 in masks is no class.

    Attributes:
        path: a folder or zip file with ``images/{training,validation}`` and
            ``annotations/{training,validation}``; ``objectInfo150.txt`` gives the names where it is
            there.
        leave_out: the share of images that one kind of fault may leave out, with a note; above it
            the fault is an error.
    """

    name: ClassVar[str] = "ade20k"
    reads: ClassVar[str] = "ADE20K"


@register_source(Ade20kConfig)
class Ade20kSource(MaskedImages):
    """See :class:`Ade20kConfig`; classes are in the order of their numbers, from 1 in masks.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no masks, or no training images with them.
    """

    def __init__(self, config: Ade20kConfig) -> None:
        super().__init__(str(config), read_ade20k(open_store(config.path)), config.leave_out)
