"""COCO's panoptic annotations as a class for every pixel, in a folder or a zip file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from castling.data.annotated import AnnotatedConfig
from castling.data.files import open_store
from castling.data.registry import register_source
from castling.data.segmentation.read_panoptic import read_panoptic
from castling.data.segmentation.source import MaskedImages


@dataclass(frozen=True, kw_only=True)
class PanopticConfig(AnnotatedConfig):
    """Images with panoptic masks; things and stuff are classes, objects are not told apart.

    Attributes:
        path: a folder or zip file with ``panoptic_train….json`` (and perhaps val), folders of the
            same name with PNG files, and the images.
        leave_out: the share of images that one kind of fault may leave out, with a note; above it
            the fault is an error.
    """

    name: ClassVar[str] = "panoptic"
    reads: ClassVar[str] = "COCO's panoptic masks"


@register_source(PanopticConfig)
class PanopticSource(MaskedImages):
    """See :class:`PanopticConfig`; classes are in the order of the category ids.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no masks, or no training images with them.
    """

    def __init__(self, config: PanopticConfig) -> None:
        super().__init__(str(config), read_panoptic(open_store(config.path)), config.leave_out)
