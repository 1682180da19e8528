"""Objects in YOLO's format: a text file for each image, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import AnnotatedConfig
from castling.data.detection.read_yolo import read_yolo
from castling.data.detection.source import AnnotatedImages
from castling.data.files import existing, open_store
from castling.data.registry import register_source


@dataclass(frozen=True, kw_only=True)
class YoloConfig(AnnotatedConfig):
    """Images with boxes, or masks as polygons, in YOLO's format.

    Attributes:
        path: a folder or zip file with ``images/{train,val,test}`` and ``labels/{train,val,test}``,
            or ``{train,valid,test}/{images,labels}``, or text files beside the images; and perhaps
            ``data.yaml`` (its names, train, val and test count) or ``classes.txt``; or a file such
            as ``data.yaml`` itself.
        leave_out: the share of objects (or images) that one kind of fault may leave out, with a
            note; above it the fault is an error.
    """

    name: ClassVar[str] = "yolo"
    reads: ClassVar[str] = "objects in YOLO's format"


@register_source(YoloConfig)
class YoloSource(AnnotatedImages):
    """See :class:`YoloConfig`; classes are in the order of their numbers.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no labels, or no training images.
    """

    def __init__(self, config: YoloConfig) -> None:
        path = existing(config.path)
        settings = path.name if path.suffix.lower() in (".yaml", ".yml") else ""
        read = read_yolo(open_store(path.parent if settings else path), settings)
        super().__init__(str(config), read, config.leave_out)
