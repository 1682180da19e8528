"""Augmentation of object detection.

What an image becomes is decided first, as positions on a canvas, and drawn once; see
:mod:`castling.data.transforms.scene`. The random numbers are torchvision's where it has the step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from castling.data.errors import DataError
from castling.data.registry import DataInfo
from castling.data.sample import Batch, Sample
from castling.data.transforms.base import Samples, Size
from castling.data.transforms.copy_paste import paste, placed_anywhere
from castling.data.transforms.detection import (
    DetectionTransformConfig,
    collate_objects,
)
from castling.data.transforms.mosaic import mosaic
from castling.data.transforms.padded import scaled_image
from castling.data.transforms.scene import Objects, Scene
from castling.data.transforms.steps import RESAMPLING, PillowPhotometricDistort, chance
from castling.utils.randomness import Keys

_MOST_ENLARGED = 4
"""Training images are kept at up to this many times the size of batches: a crop shows 0.3 of it."""

_LEAST_CROPPED = 4  # pixels of a side; torchvision's crop would have no pixel below


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
        DataError: mirroring was asked for where it changes the class, or masks where there are
            none.
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
        if masks and not info.has_masks:
            raise DataError(
                "the model learns masks, but these images have boxes alone; choose a model without "
                "masks"
            )
        if config.copy_paste and not info.has_masks:
            raise DataError(
                f"data.transform.copy_paste is {config.copy_paste}, but it cuts objects out by "
                "their masks and these images have boxes alone; set it to 0"
            )
        default = 0.5 if info.mirrored else 0.0
        self._flip = default if config.horizontal_flip is None else config.horizontal_flip
        self._resampling = RESAMPLING[config.interpolation]
        self._distort = (
            PillowPhotometricDistort(p=config.photometric) if config.photometric else None
        )
        self._crop, self._zoom = v2.RandomIoUCrop(), v2.RandomZoomOut()
        sizes = [config.size, *((side, side) for side in self.sides)]
        self._largest = max(sizes, key=min)

    def kept_size(self, original: Size) -> Size:
        """The original's, but of a very large image what the largest batches can show of it."""
        height, width = self.config.fitted(original, self._largest)
        return min(original[0], height * _MOST_ENLARGED), min(original[1], width * _MOST_ENLARGED)

    def resize(self, sample: Sample) -> Sample:
        """Scale very large images down."""
        size = self.kept_size(sample.original_size)
        return scaled_image(sample, size, self.config.interpolation)

    def augment(self, sample: Sample, size: Size | None, others: Samples = ()) -> Sample:
        """Combine with ``others``, crop, zoom, mirror, scale and distort."""
        config = self.config
        if chance(config.mosaic) and len(others):
            four = [sample, *(_any_of(others) for _ in range(3))]
            scene = mosaic(four, config.fitted(sample.original_size, size))
        else:
            scene = self._cropped(Scene.of(sample))
        scene = self._mirrored(scene)
        scene = scene.resized(config.fitted(scene.size, size))
        pasting = chance(config.copy_paste) and len(others) > 0
        found = scene.render(self._resampling, masks=self.masks or pasting)
        if pasting:
            other = self._mirrored(self._cropped(Scene.of(_any_of(others))))
            other = placed_anywhere(other, config.fitted(other.size, size), scene.size)
            found = paste(found, other.render(self._resampling, masks=True))
        return dataclasses.replace(sample, **self._finished(found))

    def _cropped(self, scene: Scene) -> Scene:
        """Zoom and crop, each with its probability."""
        if chance(self.config.zoom_out):
            left, top, right, bottom = self._zoom.make_params([_boxes_of(scene)])["padding"]
            height, width = scene.size
            scene = scene.window(-top, -left, height + top + bottom, width + left + right)
        if chance(self.config.crop) and len(scene.boxes) and min(scene.size) >= _LEAST_CROPPED:
            params = self._crop.make_params([_boxes_of(scene)])
            if params:
                scene = scene.keep(params["is_within_crop_area"])
                scene = scene.window(
                    params["top"], params["left"], params["height"], params["width"]
                )
        return scene

    def _mirrored(self, scene: Scene) -> Scene:
        return scene.mirrored() if chance(self._flip) else scene

    def _finished(self, found: Objects) -> dict[str, Any]:
        """Image and target of a sample."""
        image: Any = tv_tensors.Image(found.image)
        if self._distort is not None:
            image = self._distort.transform(image, self._distort.make_params([image]))
        size = (found.image.shape[1], found.image.shape[2])
        boxes: Any = tv_tensors.BoundingBoxes(found.boxes, format="XYXY", canvas_size=size)
        target = {"boxes": boxes, "labels": found.labels}
        if self.masks:
            assert found.masks is not None
            target["masks"] = tv_tensors.Mask(found.masks)
        return {"image": image, "target": target}

    def collate(self, samples: Sequence[Sample] | Batch, keys: Keys, size: Size | None) -> Batch:
        """The samples, masks among them, padded and stacked."""
        return collate_objects(samples, self.config.multiple)


def _boxes_of(scene: Scene) -> Any:
    """The visible objects of a scene, as torchvision's transforms take them."""
    boxes: Any = scene.boxes
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=scene.size)


def _any_of(samples: Samples) -> Sample:
    return samples[int(torch.randint(len(samples), ()))]
