"""Pascal VOC's SegmentationClass, also as CVAT exports it, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import AnnotatedConfig
from castling.data.files import open_store
from castling.data.registry import register_source
from castling.data.segmentation.read_voc_masks import read_voc_masks
from castling.data.segmentation.source import MaskedImages


@dataclass(frozen=True, kw_only=True)
class VocMasksConfig(AnnotatedConfig):
    """Images with masks in Pascal VOC's layout; 255, the border of objects, is no class.

    Attributes:
        path: a folder or zip file with ``JPEGImages``, ``SegmentationClass`` and perhaps
            ``ImageSets/Segmentation/{train,val,test}.txt``, or with several such folders; classes
            are those of ``labelmap.txt`` (or another file of classes), otherwise VOC's 21.
        leave_out: the share of images that one kind of fault may leave out, with a note; above it
            the fault is an error.
    """

    name: ClassVar[str] = "voc_masks"
    reads: ClassVar[str] = "Pascal VOC's SegmentationClass"


@register_source(VocMasksConfig)
class VocMasksSource(MaskedImages):
    """See :class:`VocMasksConfig`; classes are in the order of their numbers.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no masks, or no training images with them.
    """

    def __init__(self, config: VocMasksConfig) -> None:
        super().__init__(str(config), read_voc_masks(open_store(config.path)), config.leave_out)
