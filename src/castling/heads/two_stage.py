"""What Faster, Mask and Cascade Mask R-CNN share: region proposals from a pyramid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.rpn import (
    RegionProposalNetwork,
    RPNHead,
    concat_box_prediction_layers,
)
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from castling.heads.detector import DetectionTarget
from castling.heads.pyramid import PyramidHeadConfig, build_pyramid
from castling.heads.regions import (
    LEVELS,
    STRIDES,
    drop_small,
    move_boxes,
    split_images,
    used_columns,
)
from castling.heads.selection import best_pairs, clip_boxes, keep_best, take
from castling.heads.targets import check_targets
from castling.heads.torchvision_detector import PyramidDetector, Size, anchors_of, set_branch
from castling.models.dense import MakeBackbone

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveFloat, PositiveInt

#: From the best pairs of region and class that many go to suppression; torchvision sets no limit.
_CANDIDATES = 5000
#: (levels, boxes (B, n, 4)) → logits (B·n, K, 28, 28).
MaskHead = Callable[[dict[str, Tensor], Tensor], Tensor]
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


class Regions(NamedTuple):
    """Boxes of each image, best first.

    Attributes:
        boxes: (B, n, 4) x1, y1, x2, y2.
        there: (B, n) whether it is one.
    """

    boxes: Tensor
    there: Tensor


class RCNN(PyramidDetector):
    """A detector in two stages: proposals from a pyramid, then a head on each region.

    Args:
        config: options.
        make_backbone: builds the backbone.
        num_classes: K.
    """

    def __init__(self, config: RCNNConfig, make_backbone: MakeBackbone, num_classes: int) -> None:
        backbone, neck = build_pyramid(
            config.width, make_backbone, STRIDES, lambda *_: LastLevelMaxPool()
        )
        super().__init__(backbone, neck, num_classes, config.detections)
        self.config = config
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

    def detections_of(
        self, levels: dict[str, Tensor], regions: Regions, size: Size, valid: Tensor | None
    ) -> dict[str, Tensor]:
        """What :meth:`decode` gives, from regions of each image."""
        raise NotImplementedError

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Levels ``p2`` to ``p5``; of anchors by stride s ``objectness_s`` and ``deltas_s``.

        Objectness is (B, N_s, 1), deltas are (B, N_s, 4).
        """
        batch, levels = images.shape[0], self.levels(images)
        found = dict(zip(LEVELS, levels[: len(LEVELS)], strict=True))
        for stride, logits, deltas in zip(_PROPOSAL_STRIDES, *self.rpn.head(levels), strict=True):
            flat, moves = concat_box_prediction_layers([logits], [deltas])
            found[f"objectness_{stride}"] = flat.float().view(batch, -1, 1)
            found[f"deltas_{stride}"] = moves.float().view(batch, -1, 4)
        return found

    def proposal_losses(
        self, raw: dict[str, Tensor], size: Size, targets: Sequence[DetectionTarget]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Parts of the loss of the first stage, and its proposals (n_i, 4) of each image."""
        objectness = torch.cat([raw[f"objectness_{each}"] for each in _PROPOSAL_STRIDES], 1)
        deltas = torch.cat([raw[f"deltas_{each}"] for each in _PROPOSAL_STRIDES], 1)
        batch = len(objectness)
        levels = anchors_of(self.rpn.anchor_generator, size, _PROPOSAL_STRIDES, deltas.device)
        anchors = [torch.cat(levels)] * batch
        boxes = self.rpn.box_coder.decode(deltas.detach().flatten(0, 1), anchors)
        with set_branch(self.rpn, training=True):
            proposals, _ = self.rpn.filter_proposals(
                boxes.view(batch, -1, 4), objectness, [size] * batch, [len(each) for each in levels]
            )
        labels, matched = self.rpn.assign_targets_to_anchors(anchors, targets)
        wanted = self.rpn.box_coder.encode(matched, anchors)
        entropy, moves = self.rpn.compute_loss(objectness, deltas.flatten(0, 1), labels, wanted)
        return {"objectness": entropy, "proposals": moves}, proposals

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.losses`.

        Raises:
            ValueError: targets are wrong; see :func:`castling.heads.targets.check_targets`.
        """
        check_targets(images, targets, self.num_classes, masks=self.has_masks)
        raw = self(images)
        size = (images.shape[-2], images.shape[-1])
        first, proposals = self.proposal_losses(raw, size, targets)
        levels = {name: raw[name] for name in LEVELS}
        second = self.region_losses(levels, proposals, [size] * len(images), targets)
        return {**first, **second}

    def propose(self, raw: dict[str, Tensor], size: Size, valid: Tensor | None) -> Regions:
        """The proposals of each image, best first, as torchvision's network gives them."""
        device = raw["p2"].device
        anchors = anchors_of(self.rpn.anchor_generator, size, _PROPOSAL_STRIDES, device)
        found = []
        for level, (stride, each) in enumerate(zip(_PROPOSAL_STRIDES, anchors, strict=True)):
            scores = raw[f"objectness_{stride}"].sigmoid()
            best = best_pairs(scores, 0.0, self.config.proposals)
            deltas = take(raw[f"deltas_{stride}"], best.places)
            boxes = move_boxes(self.rpn.box_coder, deltas, each[best.places])
            found.append((boxes, best.scores, torch.full_like(best.labels, level)))
        boxes, scores, labels = (torch.cat(each, 1) for each in zip(*found, strict=True))
        boxes = clip_boxes(boxes, size, valid)
        kept = keep_best(
            boxes,
            drop_small(boxes, scores, self.rpn.min_size),
            labels,
            threshold=self.rpn.nms_thresh,
            keep=self.config.proposals,
            num_classes=len(_PROPOSAL_STRIDES),
        )
        count = used_columns(kept["scores"])
        return Regions(kept["boxes"][:, :count], kept["scores"][:, :count] > 0)

    def decode(
        self, raw: dict[str, Tensor], size: Size, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """As :meth:`castling.heads.Detector.decode`; here the second stage runs."""
        levels = {name: raw[name] for name in LEVELS}
        return self.detections_of(levels, self.propose(raw, size, valid), size, valid)

    def select(
        self,
        logits: Tensor,
        deltas: Tensor,
        regions: Regions,
        coder: Any,
        size: Size,
        valid: Tensor | None,
    ) -> dict[str, Tensor]:
        """Detections from the outputs for regions.

        Args:
            logits: (B·n, K+1), the background first.
            deltas: (B·n, 4·(K+1)), or (B·n, 4) for all classes.
            regions: that they belong to.
            coder: of the deltas.
            size: of the images.
            valid: see :meth:`decode`.
        """
        batch = regions.boxes.shape[0]
        scores = split_images(logits.softmax(-1)[:, 1:], batch) * regions.there[..., None]
        best = best_pairs(scores, self.config.score_threshold, _CANDIDATES)
        classes = deltas.shape[1] // 4
        rows = best.places if classes == 1 else best.places * classes + best.labels + 1
        chosen = take(split_images(deltas.view(-1, 4), batch), rows)
        boxes = clip_boxes(move_boxes(coder, chosen, take(regions.boxes, best.places)), size, valid)
        return keep_best(
            boxes,
            drop_small(boxes, best.scores, 1e-2),
            best.labels,
            threshold=self.config.nms_threshold,
            keep=self.detections,
            num_classes=self.num_classes,
        )

    def with_masks(
        self, found: dict[str, Tensor], levels: dict[str, Tensor], heads: Sequence[MaskHead]
    ) -> dict[str, Tensor]:
        """Detections with ``masks`` (B, n, 28, 28): the mean of the heads' sigmoids.

        Args:
            found: detections without masks.
            levels: of the pyramid.
            heads: (levels, boxes (B, m, 4)) → logits (B·m, K, 28, 28).
        """
        count = used_columns(found["scores"])
        labels = found["labels"][:, :count].reshape(-1)
        index = labels[:, None, None, None].expand(-1, -1, 28, 28)
        masks = [head(levels, found["boxes"][:, :count]).gather(1, index) for head in heads]
        mean = torch.stack([each.float().sigmoid() for each in masks]).mean(0).squeeze(1)
        mean = split_images(mean, found["boxes"].shape[0])
        there = found["scores"][:, :count, None, None] > 0
        padding = (0, 0, 0, 0, 0, self.detections - count)
        return {**found, "masks": F.pad(mean * there, padding)}
