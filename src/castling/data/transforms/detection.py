"""Transforms of object detection: options, fitting, batches.

The random part is in :mod:`castling.data.transforms.detection_training`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch.nn import functional as F

from castling.data.sample import Batch, Sample
from castling.data.transforms.base import Size, TransformConfig, fitted_size
from castling.data.transforms.padded import collate_padded
from castling.data.transforms.scene import FILL
from castling.data.transforms.steps import Interpolation


@dataclass(frozen=True, kw_only=True)
class DetectionTransformConfig(TransformConfig):
    """Size, normalisation, and random changes of the training images.

    Evaluation sees none of the random changes. Probabilities are per image.

    Attributes:
        image_size: side, or (height, width), in pixels.
        resize: ``stretch`` scales every image to exactly ``image_size``; ``keep`` keeps its aspect
            ratio: its shorter side becomes at most that of ``image_size``, its longer side at most
            ``max_size``.
        max_size: longest side of ``keep`` in pixels; None is the longer side of ``image_size``.
        multiple: batches are padded at the bottom and right to multiples of this many pixels.
        interpolation: how images are scaled.
        horizontal_flip: probability of mirroring left to right; None is 0.5, and 0 for figures and
            letters, whose mirror image means something else.
        crop: probability of an IoU crop (SSD): a random part that shows at least one object, the
            least overlap drawn from 0 to 0.9; one in seven keeps the whole image.
        zoom_out: probability of placing the image on a grey canvas of 1 to 4 times its sides.
        photometric: probability of changing, each by itself, brightness, contrast, saturation and
            hue.
        mosaic: probability of joining four images at a random corner (YOLOv4), in the place of
            crop and zoom.
        copy_paste: probability of pasting objects of another image by their masks (Ghiasi et al.,
            2021); for data with masks.
        multi_scale: sides in pixels from which every batch draws its size, such as (256, 288, 320,
            352, 384); with ``keep`` the shorter side. Empty for always ``image_size``.
    """

    image_size: PositiveInt | tuple[PositiveInt, PositiveInt] = 320
    resize: Literal["stretch", "keep"] = "stretch"
    max_size: PositiveInt | None = None
    multiple: PositiveInt = 64
    interpolation: Interpolation = "bilinear"
    horizontal_flip: ClosedUnitInterval | None = None
    crop: ClosedUnitInterval = 1.0
    zoom_out: ClosedUnitInterval = 0.0
    photometric: ClosedUnitInterval = 0.5
    mosaic: ClosedUnitInterval = 0.0
    copy_paste: ClosedUnitInterval = 0.0
    multi_scale: tuple[PositiveInt, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        height, width = self.size
        if self.max_size is not None:
            if self.resize == "stretch":
                raise ValueError(
                    "data.transform.max_size bounds images that keep their aspect ratio; set "
                    "data.transform.resize to keep, or leave max_size out"
                )
            largest = max(min(height, width), *self.multi_scale, 1)
            if self.max_size < largest:
                raise ValueError(
                    f"data.transform.max_size is {self.max_size}, less than the shorter side "
                    f"({largest}); raise it"
                )
        if self.multi_scale and height != width:
            raise ValueError(
                f"data.transform.multi_scale draws square sizes, but image_size is {height}x"
                f"{width}; give one side as image_size or leave multi_scale empty"
            )
        if self.multi_scale and not min(self.multi_scale) <= height <= max(self.multi_scale):
            raise ValueError(
                f"data.transform.image_size is {height}, but multi_scale trains at "
                f"{min(self.multi_scale)} to {max(self.multi_scale)} pixels; give sizes around "
                f"{height}, or [] for {height} alone"
            )

    def at_size(self, side: int) -> Self:
        """The same options at one size, that of multi-scale batches too."""
        sides = (side,) if self.multi_scale else ()
        longest = self.max_size
        if longest is not None:
            longest = max(side, round(longest * side / min(self.size)))
        return dataclasses.replace(self, image_size=side, multi_scale=sides, max_size=longest)

    def at_largest(self) -> Self:
        """The same options with the largest size of multi-scale batches, and padded to the most.

        With ``resize: keep`` a batch is as high as its highest image and as wide as its widest, so
        one of upright and lying images has the longest side twice.
        """
        largest = self
        if self.multi_scale:
            side = max(self.multi_scale)
            largest = dataclasses.replace(self, image_size=side, multi_scale=(side,))
        if self.resize == "stretch":
            return largest
        longest = self.max_size or max(largest.size)
        padded = -(-longest // self.multiple) * self.multiple
        return dataclasses.replace(largest, multiple=padded)

    def fitted(self, original: Size, size: Size | None = None) -> Size:
        """(height, width) that an image is scaled to.

        Args:
            original: (height, width) of the image.
            size: drawn for the batch; None is ``image_size``.
        """
        size = size or self.size
        if self.resize == "stretch":
            return size
        longest = max(size) if self.max_size is None else self.max_size
        return fitted_size(original, min(size), longest)

    def description(self) -> dict[str, object]:
        """Scaling and padding in plain values, as exported files store them.

        ``resize`` is ``"warp"`` (to exactly ``resize_size``) or ``"fit"`` (keep the aspect ratio;
        the scale is the smaller of shortest/shorter side and longest/longer side, sides are
        rounded half up). Then the image is padded at the bottom and right with ``pad_value``, in
        [0, 255], to multiples of ``pad_multiple``.
        """
        fit: dict[str, object] = {
            "resize": "fit",
            "shortest": min(self.size),
            "longest": self.max_size or max(self.size),
        }
        warp: dict[str, object] = {"resize": "warp", "resize_size": list(self.size)}
        return (warp if self.resize == "stretch" else fit) | {
            "interpolation": self.interpolation,
            "pad_multiple": self.multiple,
            "pad_value": FILL,
        }


def collate_objects(samples: Sequence[Sample] | Batch, multiple: int) -> Batch:
    """A batch whose targets are lists, one tensor per image.

    Args:
        samples: at least one; their masks are padded as the images are.
        multiple: that the sides of the batch's images are padded to.
    """
    batch = collate_padded(samples, multiple)
    if "masks" not in batch.targets:
        return batch
    height, width = batch.images.shape[2:]
    masks = [
        F.pad(mask, (0, width - mask.shape[2], 0, height - mask.shape[1]))
        for mask in batch.targets["masks"]
    ]
    return dataclasses.replace(batch, targets=batch.targets | {"masks": masks})
