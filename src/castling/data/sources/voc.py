"""Objects in Pascal VOC's format: an XML file beside each image, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import AnnotatedConfig
from castling.data.detection.read_voc import Difficult, FirstPixel, read_voc
from castling.data.detection.source import AnnotatedImages
from castling.data.files import open_store
from castling.data.registry import register_source


@dataclass(frozen=True, kw_only=True)
class VocConfig(AnnotatedConfig):
    """Images with boxes in Pascal VOC's format.

    Attributes:
        path: a folder or zip file with ``Annotations/*.xml``, ``JPEGImages/`` and perhaps
            ``ImageSets/Main/{train,val,test}.txt``, with several such folders (VOCdevkit), or with
            XML files beside the images, in folders train, val and test or all together.
        first_pixel: VOC counts pixels from 1, and xmax is the last pixel of a box; 0: coordinates
            are corners as they stand; auto: 1 unless a coordinate is 0.
        difficult: ignore: objects marked difficult are not trained on and excused in evaluation;
            train: they are objects like others.
        leave_out: the share of objects (or images) that one kind of fault may leave out, with a
            note; above it the fault is an error.
    """

    name: ClassVar[str] = "voc"
    reads: ClassVar[str] = "objects in Pascal VOC's format"
    first_pixel: FirstPixel = "auto"
    difficult: Difficult = "ignore"


@register_source(VocConfig)
class VocSource(AnnotatedImages):
    """See :class:`VocConfig`; classes are sorted by name.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no annotations, or no training images with them.
    """

    def __init__(self, config: VocConfig) -> None:
        read = read_voc(open_store(config.path), config.first_pixel, config.difficult)
        super().__init__(str(config), read, config.leave_out)
