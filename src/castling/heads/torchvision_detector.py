"""Between torchvision's detection code and :class:`castling.heads.Detector`.

torchvision takes lists of images and gives lists of dictionaries of any length; a detector here
takes a batch and gives tensors padded to one length.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList

from castling.heads.detector import DetectionTarget, Detector
from castling.heads.targets import check_targets
from castling.models.backbone import Backbone

#: (height, width) in pixels.
Size = tuple[int, int]


#: torchvision's names of parts of the loss → ours, the same for all heads.
_LOSSES = {
    "classification": "classification",
    "bbox_regression": "boxes",
    "bbox_ctrness": "centerness",
}


class Width(nn.Module):
    """Stands for the backbone in torchvision's detectors, which ask only for its channels.

    Args:
        channels: of every level.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_channels = channels


class PyramidDetector(Detector):
    """Backbone and pyramid, under a head of torchvision's.

    Args:
        backbone: gives maps for the neck.
        neck: gives the levels of a pyramid.
        num_classes: K.
        detections: per image.
    """

    def __init__(
        self, backbone: Backbone, neck: nn.Module, num_classes: int, detections: int
    ) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.num_classes, self.detections = num_classes, detections

    def levels(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) → levels (B, width, H/stride, W/stride)."""
        levels: list[Tensor] = self.neck(self.backbone(images))
        return levels


def level_sizes(size: Size, strides: Sequence[int]) -> list[Size]:
    """Height and width of the levels of an image; coarse ones are rounded up."""
    return [(-(-size[0] // stride), -(-size[1] // stride)) for stride in strides]


def anchors_of(
    generator: AnchorGenerator, size: Size, levels: Sequence[Size], like: Tensor
) -> Tensor:
    """Anchors (N, 4) of an image of ``size``, in float32 whatever the levels are in.

    torchvision makes them in the dtype of the maps: under autocast to bfloat16, whose integers end
    at 256, anchors of larger coordinates would be off by pixels.
    """
    image = torch.empty((), device=like.device).expand(1, 3, *size)
    maps = [torch.empty((), device=like.device).expand(1, 1, *each) for each in levels]
    (anchors,) = generator(ImageList(image, [size]), maps)
    return anchors


def image_sizes(size: Size, valid: Tensor | None, batch: int) -> list[Size]:
    """Height and width of each image without padding."""
    if valid is None:
        return [size] * batch
    return [(int(height), int(width)) for height, width in valid.tolist()]


def stack_detections(found: Sequence[Mapping[str, Tensor]], length: int) -> dict[str, Tensor]:
    """(n_i, …) of each image → (B, length, …), zeros where an image has fewer."""
    return {name: torch.stack([_padded(each[name], length) for each in found]) for name in found[0]}


def _padded(values: Tensor, length: int) -> Tensor:
    return F.pad(values, (0, 0) * (values.ndim - 1) + (0, length - len(values)))


@contextmanager
def set_branch(module: nn.Module, *, training: bool) -> Iterator[None]:
    """Choose the branch of a module of torchvision that looks at ``training``.

    ``losses`` and ``decode`` then do the same in either mode. Only the flag of the module is set;
    none of its children behaves differently in training.
    """
    before = module.training
    module.training = training
    try:
        yield
    finally:
        module.training = before


class OneStageDetector(PyramidDetector):
    """A class and a box at every place of a pyramid, as torchvision's RetinaNet and FCOS.

    Matching, losses and suppression are torchvision's. Resizing and normalising are not used: the
    transforms and the task do them.

    Args:
        backbone: gives maps for the neck.
        neck: gives five levels.
        head: torchvision's detector, made for a :class:`Width`.
        num_classes: K.
    """

    #: Of the levels, in pixels.
    strides = (8, 16, 32, 64, 128)

    def __init__(
        self, backbone: Backbone, neck: nn.Module, head: RetinaNet | FCOS, num_classes: int
    ) -> None:
        super().__init__(backbone, neck, num_classes, head.detections_per_img)
        self.head = head

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Of every anchor, levels one after the other: logits (B, N, K), boxes (B, N, 4), …."""
        found = self.head.head(self.levels(images))
        return {name: value.float() for name, value in found.items()}

    def _anchors(self, size: Size, like: Tensor) -> tuple[Tensor, list[int]]:
        """Anchors (N, 4), and how many each level has."""
        sizes = level_sizes(size, self.strides)
        counts = self.head.anchor_generator.num_anchors_per_location()
        numbers = [h * w * count for (h, w), count in zip(sizes, counts, strict=True)]
        return anchors_of(self.head.anchor_generator, size, sizes, like), numbers

    def _matching_arguments(self, numbers: list[int]) -> tuple[Any, ...]:
        """Further arguments of the head's ``compute_loss``."""
        return ()

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.losses`.

        Raises:
            ValueError: targets are wrong; see :func:`castling.heads.targets.check_targets`.
        """
        check_targets(images, targets, self.num_classes)
        raw = self(images)
        anchors, numbers = self._anchors((images.shape[-2], images.shape[-1]), images)
        parts = self.head.compute_loss(
            targets, raw, [anchors] * len(images), *self._matching_arguments(numbers)
        )
        return {_LOSSES[name]: value for name, value in parts.items()}

    def decode(
        self, raw: dict[str, Tensor], size: Size, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.decode`."""
        logits = raw["cls_logits"]
        anchors, numbers = self._anchors(size, logits)
        found = self.head.postprocess_detections(
            {name: list(value.split(numbers, dim=1)) for name, value in raw.items()},
            [list(anchors.split(numbers))] * len(logits),
            image_sizes(size, valid, len(logits)),
        )
        return stack_detections(found, self.detections)
