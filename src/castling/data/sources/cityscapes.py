"""Cityscapes' 19 classes, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import AnnotatedConfig
from castling.data.files import open_store
from castling.data.registry import register_source
from castling.data.segmentation.read_cityscapes import read_cityscapes
from castling.data.segmentation.source import MaskedImages


@dataclass(frozen=True, kw_only=True)
class CityscapesConfig(AnnotatedConfig):
    """Images and fine annotations of Cityscapes; other ids than those of the classes are ignored.

    Attributes:
        path: a folder or zip file with ``leftImg8bit/{train,val}/CITY/x_leftImg8bit.png`` and
            ``gtFine/{train,val}/CITY/x_gtFine_labelIds.png`` (or ``_labelTrainIds``). Test images
            are not used: their masks are not public.
        leave_out: the share of images that one kind of fault may leave out, with a note; above it
            the fault is an error.
    """

    name: ClassVar[str] = "cityscapes"
    reads: ClassVar[str] = "Cityscapes"


@register_source(CityscapesConfig)
class CityscapesSource(MaskedImages):
    """See :class:`CityscapesConfig`; classes are in the order of their train ids.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no masks, or no training images with them.
    """

    def __init__(self, config: CityscapesConfig) -> None:
        super().__init__(str(config), read_cityscapes(open_store(config.path)), config.leave_out)
