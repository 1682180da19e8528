"""Images and masks, in folders or a zip file."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from jsonargparse.typing import NonNegativeInt

from castling.data.annotated import AnnotatedConfig
from castling.data.files import open_store
from castling.data.registry import register_source
from castling.data.segmentation.naming import Numbering, check_classes
from castling.data.segmentation.read_masks import MaskOptions, read_masks
from castling.data.segmentation.source import MaskedImages


@dataclass(frozen=True, kw_only=True)
class MasksConfig(AnnotatedConfig):
    """Images with a mask each, which numbers or paints the class of every pixel.

    Attributes:
        path: a folder or zip file with ``images/{train,val,test}`` and ``masks/{train,val,test}``,
            ``{train,val,test}/{images,masks}``, ``{train,val}`` and ``{train,val}_labels``, or with
            masks beside the images; all at any depth.
        images: folder of the images below ``path``, in which ``{split}`` stands for train, val or
            test; empty: found by its name.
        masks: the same for the masks.
        classes: names in the order of the numbers, from 0; empty: from classes.json, classes.txt,
            labels.txt, class_dict.csv or labelmap.txt below ``path``, or numbered as in the masks.
        colours: class of each colour, such as ``128,64,128: road``; a name such as void is no
            class. With it colours count before numbers: those of a palette, and greys.
        ignore: numbers of no class, beside 255.
        reduce_zero_label: 0 is no class, and numbers count from 1.
        leave_out: the share of images that one kind of fault may leave out, with a note; above it
            the fault is an error.
    """

    name: ClassVar[str] = "masks"
    reads: ClassVar[str] = "images with a mask each"
    images: str = ""
    masks: str = ""
    classes: tuple[str, ...] = ()
    colours: dict[str, str] = field(default_factory=dict)
    ignore: tuple[NonNegativeInt, ...] = ()
    reduce_zero_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if bool(self.images) != bool(self.masks):
            raise ValueError("data.source names a folder of images or of masks alone: name both")
        check_classes(self.classes, "data.source.classes")
        if self.colours and (self.ignore or self.reduce_zero_label):
            raise ValueError(
                "data.source.ignore and reduce_zero_label are about numbers, and with "
                "data.source.colours those count as colours: call a colour of no class void there"
            )
        for colour, name in self.colours.items():
            if not isinstance(colour, str) or not isinstance(name, str):
                raise ValueError(
                    f"data.source.colours has {colour!r}: {name!r}; write "
                    '"128,64,128": road, with quotes around the colour'
                )


@register_source(MasksConfig)
class MasksSource(MaskedImages):
    """See :class:`MasksConfig`; classes are in the order of their numbers.

    Raises:
        FileNotFoundError: there is nothing at the path.
        DataError: there are no masks, or no training images with them.
    """

    def __init__(self, config: MasksConfig) -> None:
        options = MaskOptions(
            config.images,
            config.masks,
            config.classes,
            config.colours,
            Numbering(config.ignore, config.reduce_zero_label),
        )
        super().__init__(
            str(config), read_masks(open_store(config.path), options), config.leave_out
        )
