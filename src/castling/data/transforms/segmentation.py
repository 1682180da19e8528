"""Transforms of semantic segmentation: options, fitting, batches.

The random part is in :mod:`castling.data.transforms.segmentation_training`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal, Self

from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt

from castling.data.transforms.base import Size, TransformConfig, fitted_size
from castling.data.transforms.scene import FILL
from castling.data.transforms.steps import Interpolation
from castling.utils.checks import LeftOpenUnitInterval

#: Longer sides of images that keep their aspect ratio, in shorter ones, at most.
_LONGEST = 4


@dataclass(frozen=True, kw_only=True)
class SegmentationTransformConfig(TransformConfig):
    """Size, normalisation, and random changes of the training images.

    Evaluation sees none of the random changes, and compares with the original masks. Probabilities
    are per image.

    Attributes:
        image_size: side, or (height, width), in pixels, of the parts that training sees.
        resize: what an image is scaled to before the random changes: ``keep`` keeps its aspect
            ratio: its shorter side becomes that of ``image_size``, unless its longer side would
            become more than ``max_size``; ``stretch`` scales it to exactly ``image_size``; ``none``
            leaves it as it is.
        max_size: longest side of ``keep`` in pixels; None is four times the shorter side.
        multiple: batches are padded at the bottom and right to multiples of this many pixels.
        interpolation: how images are scaled; masks always take the nearest label.
        scale: range from which each image draws, uniformly, how much larger than by ``resize`` it
            becomes, before a part is cut out.
        cat_max_ratio: share of a part that one class may take: up to ten parts are drawn until one
            shows less than that of each class; 1 takes the first.
        horizontal_flip: probability of mirroring left to right; None is 0.5, and 0 for figures and
            letters, whose mirror image means something else.
        photometric: probability of changing, each by itself, brightness, contrast, saturation and
            hue.
    """

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 512
    resize: Literal["keep", "stretch", "none"] = "keep"
    max_size: PositiveInt | None = None
    multiple: PositiveInt = 32
    interpolation: Interpolation = "bilinear"
    scale: tuple[PositiveFloat, PositiveFloat] = (0.5, 2.0)
    cat_max_ratio: LeftOpenUnitInterval = 0.75
    horizontal_flip: ClosedUnitInterval | None = None
    photometric: ClosedUnitInterval = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.scale[0] > self.scale[1]:
            raise ValueError(
                f"data.transform.scale is {list(self.scale)}: give the smaller factor first"
            )
        if self.max_size is None:
            return
        if self.resize != "keep":
            raise ValueError(
                "data.transform.max_size bounds images that keep their aspect ratio; set "
                "data.transform.resize to keep, or leave max_size out"
            )
        if self.max_size < min(self.size):
            raise ValueError(
                f"data.transform.max_size is {self.max_size}, less than the shorter side "
                f"({min(self.size)}); raise it"
            )

    def at_size(self, side: int) -> Self:
        """The same options for parts of another size."""
        longest = self.max_size
        if longest is not None:
            longest = max(side, round(longest * side / min(self.size)))
        return dataclasses.replace(self, image_size=side, max_size=longest)

    @property
    def longest(self) -> int:
        """Longer side of ``keep`` in pixels, at most."""
        return _LONGEST * min(self.size) if self.max_size is None else self.max_size

    def fitted(self, original: Size) -> Size:
        """(height, width) that an image of ``original`` size is scaled to."""
        if self.resize == "stretch":
            return self.size
        if self.resize == "none":
            return original
        return fitted_size(original, min(self.size), self.longest)

    def description(self) -> dict[str, object]:
        """Scaling and padding in plain values, as exported files store them.

        ``resize`` is ``"warp"`` (to exactly ``resize_size``), ``"fit"`` (keep the aspect ratio; the
        scale is the smaller of shortest/shorter side and longest/longer side, sides are rounded
        half up) or ``"none"``. Then the image is padded at the bottom and right with ``pad_value``,
        in [0, 255], to multiples of ``pad_multiple``.
        """
        ways: dict[str, dict[str, object]] = {
            "keep": {"resize": "fit", "shortest": min(self.size), "longest": self.longest},
            "stretch": {"resize": "warp", "resize_size": list(self.size)},
            "none": {"resize": "none"},
        }
        return ways[self.resize] | {
            "interpolation": self.interpolation,
            "pad_multiple": self.multiple,
            "pad_value": FILL,
        }
