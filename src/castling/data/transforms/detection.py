"""Transforms of object detection: fitting, augmentation, batches.

What an image becomes is decided first, as positions on a canvas, and drawn once; see
:mod:`castling.data.transforms.scene`. Random numbers and their distributions are torchvision's.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from castling.data.decode import image_tensor, pillow_image
from castling.data.errors import DataError
from castling.data.registry import DataInfo
from castling.data.sample import Batch, Sample, stack_samples
from castling.data.transforms.base import Samples, Size, TransformConfig
from castling.data.transforms.scene import FILL, Objects, Scene
from castling.data.transforms.steps import RESAMPLING, Interpolation
from castling.utils.randomness import Keys

_MOST_ENLARGED = 4
"""Training images are kept at up to this many times the size of batches: a crop shows 0.3 of it."""

_LEAST_CROPPED = 4  # pixels of a side; torchvision's crop would have no pixel below


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

    def at_size(self, side: int) -> Self:
        """The same options at one size, that of multi-scale batches too."""
        sides = (side,) if self.multi_scale else ()
        longest = self.max_size
        if longest is not None:
            longest = max(side, round(longest * side / min(self.size)))
        return dataclasses.replace(self, image_size=side, multi_scale=sides, max_size=longest)

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
        scale = min(min(size) / min(original), longest / max(original))
        return max(1, int(original[0] * scale + 0.5)), max(1, int(original[1] * scale + 0.5))

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


class DetectionEvalTransform:
    """What every image goes through outside training: scaling and padding, no randomness.

    Targets stay in pixels of the original image, complete, crowds included: predictions are
    compared there.

    Args:
        config: size and protocol.
    """

    random = False
    sides: tuple[int, ...] = ()
    fixed_size: Size | None = None

    def __init__(self, config: DetectionTransformConfig) -> None:
        self.config = config

    def resize(self, sample: Sample) -> Sample:
        """Scale the image alone."""
        return _scaled(sample, self.config.fitted(sample.original_size), self.config.interpolation)

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """The sample as it is."""
        return sample

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """The samples padded and stacked."""
        return collate_objects(samples, self.config.multiple)


class DetectionTrainTransform:
    """Augmentation as the configuration says, every random number drawn from the sample's key.

    Batches have ``boxes`` (n, 4) in pixels of the batch's images, ``labels`` (n,), and ``masks``
    (n, H, W) where they are asked for, as one list each. Crowds are left out, and so are objects
    of which less than a tenth, or less than a pixel, can be seen.

    Args:
        config: sizes and augmentation.
        info: of the source: whether mirror images keep their class.
        masks: whether batches have masks.

    Raises:
        DataError: mirroring was asked for where it changes the class.
    """

    random = True
    fixed_size: Size | None = None

    def __init__(
        self, config: DetectionTransformConfig, info: DataInfo, *, masks: bool = False
    ) -> None:
        self.config, self.masks = config, masks
        self.sides = config.multi_scale
        if config.horizontal_flip and not info.mirrored:
            raise DataError(
                f"data.transform.horizontal_flip is {config.horizontal_flip}, but the mirror image "
                "of a figure or letter of this source is another one; set it to 0"
            )
        default = 0.5 if info.mirrored else 0.0
        self._flip = default if config.horizontal_flip is None else config.horizontal_flip
        self._resampling = RESAMPLING[config.interpolation]
        self._distort = _Distort(p=config.photometric) if config.photometric else None
        self._crop, self._zoom = v2.RandomIoUCrop(), v2.RandomZoomOut()
        sizes = [config.size, *((side, side) for side in self.sides)]
        self._largest = max(sizes, key=min)

    def resize(self, sample: Sample) -> Sample:
        """Scale very large images down, to what the largest batches can show of them."""
        height, width = self.config.fitted(sample.original_size, self._largest)
        most = height * _MOST_ENLARGED, width * _MOST_ENLARGED
        size = min(most[0], sample.image.shape[1]), min(most[1], sample.image.shape[2])
        return _scaled(sample, size, self.config.interpolation)

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """Crop, zoom, mirror, scale and distort; ``others`` are images to combine it with."""
        scene = self._geometry(Scene.of(sample))
        scene = scene.resized(self.config.fitted(scene.size, size))
        found = scene.render(self._resampling, masks=self.masks)
        return dataclasses.replace(sample, **self._finished(found))

    def _geometry(self, scene: Scene) -> Scene:
        """Zoom, crop and mirror, each with its probability."""
        if _chance(self.config.zoom_out):
            left, top, right, bottom = self._zoom.make_params([_boxes_of(scene)])["padding"]
            height, width = scene.size
            scene = scene.window(-top, -left, height + top + bottom, width + left + right)
        if _chance(self.config.crop) and len(scene.boxes) and min(scene.size) >= _LEAST_CROPPED:
            params = self._crop.make_params([_boxes_of(scene)])
            if params:
                scene = scene.keep(params["is_within_crop_area"])
                scene = scene.window(
                    params["top"], params["left"], params["height"], params["width"]
                )
        return scene.mirrored() if _chance(self._flip) else scene

    def _finished(self, found: Objects) -> dict[str, Any]:
        """Image and target of a sample."""
        image: Any = tv_tensors.Image(found.image)
        if self._distort is not None:
            image = self._distort.transform(image, self._distort.make_params([image]))
        size = (found.image.shape[1], found.image.shape[2])
        boxes: Any = tv_tensors.BoundingBoxes(found.boxes, format="XYXY", canvas_size=size)
        target = {"boxes": boxes, "labels": found.labels}
        if found.masks is not None:
            target["masks"] = tv_tensors.Mask(found.masks)
        return {"image": image, "target": target}

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """The samples, masks among them, padded and stacked."""
        return collate_objects(samples, self.config.multiple)


def collate_objects(samples: Sequence[Sample] | Batch, multiple: int) -> Batch:
    """A batch whose targets are lists, one tensor per image.

    Args:
        samples: at least one; their masks are padded as the images are.
        multiple: that the sides of the batch's images are padded to.
    """
    assert not isinstance(samples, Batch), "objects are kept in memory one image at a time"
    bare = [dataclasses.replace(sample, target={}) for sample in samples]
    batch = stack_samples(bare, multiple=multiple, fill=FILL)
    targets: dict[str, Tensor | list[Tensor]] = {
        name: [sample.target[name].as_subclass(Tensor) for sample in samples]
        for name in samples[0].target
    }
    if "masks" in targets:
        height, width = batch.images.shape[2:]
        targets["masks"] = [
            torch.nn.functional.pad(mask, (0, width - mask.shape[2], 0, height - mask.shape[1]))
            for mask in targets["masks"]
        ]
    return dataclasses.replace(batch, targets=targets)


class _Distort(v2.RandomPhotometricDistort):
    """torchvision's, without exchanging the colour channels: blue apples are no apples."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {**super().make_params(flat_inputs), "channel_permutation": None}


def _scaled(sample: Sample, size: Size, interpolation: Interpolation) -> Sample:
    """The sample with its image alone scaled to (height, width)."""
    if tuple(sample.image.shape[1:]) == size:
        return sample
    image = pillow_image(sample.image).resize(size[::-1], RESAMPLING[interpolation])
    return dataclasses.replace(sample, image=image_tensor(image))


def _boxes_of(scene: Scene) -> Any:
    """The visible objects of a scene, as torchvision's transforms take them."""
    boxes: Any = scene.boxes
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=scene.size)


def _chance(probability: float) -> bool:
    """Whether something of a probability happens; a number is drawn in any case."""
    return bool(torch.rand(()) < probability)
