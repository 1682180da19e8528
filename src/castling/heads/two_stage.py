"""What Faster, Mask and Cascade Mask R-CNN share: region proposals from a pyramid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops import MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool
from torchvision.ops.poolers import LevelMapper

from castling.heads.detector import DetectionTarget
from castling.heads.pyramid import PyramidHeadConfig, build_pyramid
from castling.heads.targets import check_targets
from castling.heads.torchvision_detector import (
    PyramidDetector,
    Size,
    anchors_of,
    image_sizes,
    set_branch,
    stack_detections,
)
from castling.models.dense import MakeBackbone

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveFloat, PositiveInt

#: Strides and names of the levels that regions are cut from.
STRIDES, LEVELS = (4, 8, 16, 32), ("p2", "p3", "p4", "p5")
#: Levels of the proposals: one more, every second place of the last.
_PROPOSAL_STRIDES = (*STRIDES, 64)


@dataclass(frozen=True, kw_only=True)
class RCNNConfig(PyramidHeadConfig):
    """Options that all R-CNNs share; the defaults are torchvision's and mmdet's.

    Attributes:
        proposals: regions per image that are classified, at most, in evaluation.
        training_proposals: the same in training, before sampling.
        samples: regions per image that the loss is computed on, a quarter objects at most.
        anchor_scale: side of the anchors of a level in strides of the level. At 8 they are 32 to
            512 pixels; less for small objects in small images.
        hidden: channels of the two fully connected layers of a box head.
    """

    proposals: PositiveInt = 1000
    training_proposals: PositiveInt = 2000
    samples: PositiveInt = 512
    anchor_scale: PositiveFloat = 8.0
    hidden: PositiveInt = 1024


#: Of the test-sized siblings.
PICO = {"width": 16, "proposals": 50, "training_proposals": 50, "samples": 32, "hidden": 32}


def _proposal_network(config: RCNNConfig) -> RegionProposalNetwork:
    """Of torchvision (Ren et al., NeurIPS 2015): one size and three shapes of anchors a level."""
    sizes = tuple((int(config.anchor_scale * stride),) for stride in _PROPOSAL_STRIDES)
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    numbers = {"training": config.training_proposals, "testing": config.proposals}
    return RegionProposalNetwork(
        anchors,
        RPNHead(config.width, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_top_n=numbers,
        post_nms_top_n=numbers,
        nms_thresh=0.7,
    )


def roi_align(output_size: int) -> MultiScaleRoIAlign:
    """Cuts each region from the level that fits its size, into ``output_size``² places.

    torchvision guesses the strides from the first batch and keeps them: one small image in a padded
    batch would spoil all later ones. They are set here.
    """
    pool = MultiScaleRoIAlign(list(LEVELS), output_size, sampling_ratio=2)
    pool.scales = [1 / stride for stride in STRIDES]
    pool.map_levels = LevelMapper(k_min=2, k_max=5)
    return pool


class RCNN(PyramidDetector):
    """A detector in two stages: proposals from a pyramid, then a head on each region.

    Args:
        config: options.
        make_backbone: builds the backbone.
        num_classes: K.
    """

    def __init__(self, config: RCNNConfig, make_backbone: MakeBackbone, num_classes: int) -> None:
        backbone, neck = build_pyramid(
            config, make_backbone, STRIDES, lambda *_: LastLevelMaxPool()
        )
        super().__init__(backbone, neck, num_classes, config.detections)
        self.rpn = _proposal_network(config)

    def region_losses(
        self,
        levels: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[Size],
        targets: Sequence[DetectionTarget],
    ) -> dict[str, Tensor]:
        """Parts of the loss of the second stage, from proposals (n_i, 4) of each image."""
        raise NotImplementedError

    def regions(
        self, levels: dict[str, Tensor], proposals: list[Tensor], sizes: list[Size]
    ) -> list[dict[str, Tensor]]:
        """Detections of each image, from proposals (n_i, 4)."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels ``p2`` to ``p5``; ``objectness`` (B, N, 1) and ``deltas`` (B, N, 4) of anchors."""
        levels = self.levels(images)
        objectness, deltas = concat_box_prediction_layers(*self.rpn.head(levels))
        return {
            **dict(zip(LEVELS, levels[: len(LEVELS)], strict=True)),
            "objectness": objectness.float().view(len(images), -1, 1),
            "deltas": deltas.float().view(len(images), -1, 4),
        }

    def _anchors(self, raw: dict[str, Tensor], size: Size) -> tuple[list[Tensor], list[int]]:
        """Anchors (N, 4) for each image, and how many each level has."""
        deltas = raw["deltas"]
        levels = anchors_of(self.rpn.anchor_generator, size, _PROPOSAL_STRIDES, deltas.device)
        return [torch.cat(levels)] * len(deltas), [len(each) for each in levels]

    def _proposals(
        self, raw: dict[str, Tensor], anchors: list[Tensor], numbers: list[int], sizes: list[Size]
    ) -> list[Tensor]:
        """The best anchors (n_i, 4) of each image, moved and after suppression."""
        deltas = raw["deltas"].detach()
        boxes = self.rpn.box_coder.decode(deltas.flatten(0, 1), anchors).view(deltas.shape)
        found: list[Tensor] = self.rpn.filter_proposals(boxes, raw["objectness"], sizes, numbers)[0]
        return found

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.losses`.

        Raises:
            ValueError: targets are wrong; see :func:`castling.heads.targets.check_targets`.
        """
        check_targets(images, targets, self.num_classes, masks=self.has_masks)
        raw = self(images)
        size = (images.shape[-2], images.shape[-1])
        sizes = [size] * len(images)
        anchors, numbers = self._anchors(raw, size)
        with set_branch(self.rpn, training=True):
            proposals = self._proposals(raw, anchors, numbers, sizes)
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        wanted = self.rpn.box_coder.encode(matched, anchors)
        objectness, boxes = self.rpn.compute_loss(
            raw["objectness"], raw["deltas"].flatten(0, 1), labels, wanted
        )
        second = self.region_losses({name: raw[name] for name in LEVELS}, proposals, sizes, targets)
        return {"objectness": objectness, "proposals": boxes, **second}

    def decode(
        self, raw: dict[str, Tensor], size: Size, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.decode`; here the second stage runs."""
        sizes = image_sizes(size, valid, len(raw["deltas"]))
        with set_branch(self.rpn, training=False):
            proposals = self._proposals(raw, *self._anchors(raw, size), sizes)
        found = self.regions({name: raw[name] for name in LEVELS}, proposals, sizes)
        return stack_detections(found, self.detections)
