"""Between torchvision's detection code and :class:`castling.heads.Detector`.

torchvision takes lists of images and gives lists of dictionaries of any length; a detector here
takes a batch and gives tensors padded to one length.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from castling.heads.detector import DetectionTarget, Detector
from castling.heads.selection import best_pairs, clip_boxes, keep_best, take
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
    """Height and width of the levels of an image, rounded up.

    Of positive numbers: ONNX divides negative ones towards zero.
    """
    return [((size[0] + s - 1) // s, (size[1] + s - 1) // s) for s in strides]


def anchors_of(
    generator: AnchorGenerator, size: Size, strides: Sequence[int], device: torch.device
) -> list[Tensor]:
    """Anchors (N_s, 4) of each level of an image, in float32 whatever the levels are in.

    torchvision makes them in the dtype of the maps: under autocast to bfloat16, whose whole numbers
    end at 256, they would be off by pixels. Like torchvision's, those of levels that do not divide
    the image lie closer than the stride.
    """
    if generator.cell_anchors[0].device != device:
        generator.set_cell_anchors(torch.float32, device)
    levels = level_sizes(size, strides)
    steps = [(size[0] // height, size[1] // width) for height, width in levels]
    anchors: list[Tensor] = generator.grid_anchors(levels, steps)
    return anchors


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

    Matching and losses are torchvision's. Decoding gives what torchvision's does, with shapes that
    follow from the image's alone, so that the whole detector can be exported.

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
        """By stride s: ``cls_logits_s`` (B, N_s, K), ``bbox_regression_s`` (B, N_s, 4), …."""
        return {
            f"{name}_{stride}": value.float()
            for stride, level in zip(self.strides, self.levels(images), strict=True)
            for name, value in self.head.head([level]).items()
        }

    def _levels_of(self, raw: dict[str, Tensor]) -> list[dict[str, Tensor]]:
        """The outputs of each level, by torchvision's names."""
        names = dict.fromkeys(name.rpartition("_")[0] for name in raw)
        return [{name: raw[f"{name}_{stride}"] for name in names} for stride in self.strides]

    def match(
        self, targets: Sequence[DetectionTarget], raw: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Parts of the loss by torchvision's names.

        Args:
            targets: one per image.
            raw: outputs (B, N, …) of all levels.
            anchors: (N_s, 4) of each level.
        """
        raise NotImplementedError

    def scores(self, level: dict[str, Tensor]) -> Tensor:
        """(B, N_s, K) in [0, 1]."""
        raise NotImplementedError

    def boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """(B, n, 4) x1, y1, x2, y2 of deltas and anchors (B, n, 4)."""
        raise NotImplementedError

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.losses`.

        Raises:
            ValueError: targets are wrong; see :func:`castling.heads.targets.check_targets`.
        """
        check_targets(images, targets, self.num_classes)
        levels = self._levels_of(self(images))
        raw = {name: torch.cat([each[name] for each in levels], 1) for name in levels[0]}
        size = (images.shape[-2], images.shape[-1])
        anchors = anchors_of(self.head.anchor_generator, size, self.strides, images.device)
        return {_LOSSES[name]: part for name, part in self.match(targets, raw, anchors).items()}

    def decode(
        self, raw: dict[str, Tensor], size: Size, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.decode`."""
        device = raw[f"cls_logits_{self.strides[0]}"].device
        anchors = anchors_of(self.head.anchor_generator, size, self.strides, device)
        levels = zip(self._levels_of(raw), anchors, strict=True)
        found = [self._candidates(level, each) for level, each in levels]
        boxes, scores, labels = (torch.cat(each, 1) for each in zip(*found, strict=True))
        return keep_best(
            clip_boxes(boxes, size, valid),
            scores,
            labels,
            threshold=self.head.nms_thresh,
            keep=self.detections,
            num_classes=self.num_classes,
        )

    def _candidates(
        self, level: dict[str, Tensor], anchors: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, n, 4), scores (B, n), labels (B, n): best first."""
        head = self.head
        best = best_pairs(self.scores(level), head.score_thresh, head.topk_candidates)
        boxes = self.boxes(take(level["bbox_regression"], best.places), anchors[best.places])
        return boxes, best.scores, best.labels
