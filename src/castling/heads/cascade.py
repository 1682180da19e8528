"""Cascade Mask R-CNN on any backbone: three box heads, each on the boxes of the one before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss
from torchvision.ops import clip_boxes_to_image

from castling.heads.detector import DetectionTarget
from castling.heads.regions import RegionAlign, move_boxes
from castling.heads.selection import clip_boxes
from castling.heads.torchvision_detector import Size
from castling.heads.two_stage import PICO, RCNN, RCNNConfig, Regions
from castling.models.dense import MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveInt


@dataclass(frozen=True, kw_only=True)
class CascadeConfig(RCNNConfig):
    """Options of Cascade Mask R-CNN (Cai and Vasconcelos, 2019), as mmdet configures it.

    Attributes:
        mask_convolutions: of each of the three mask heads.
    """

    name: ClassVar[str] = "cascade_mask_rcnn"

    mask_convolutions: PositiveInt = 4


class _StageOptions(NamedTuple):
    """What a stage differs in.

    Attributes:
        overlap: with an object (IoU), from which a region is one.
        code: weights of the coordinates of its box.
        weight: of its losses.
    """

    overlap: float
    code: tuple[float, float, float, float]
    weight: float


_STAGES = (
    _StageOptions(0.5, (10.0, 10.0, 5.0, 5.0), 1.0),
    _StageOptions(0.6, (20.0, 20.0, 10.0, 10.0), 0.5),
    _StageOptions(0.7, (30.3, 30.3, 14.9, 14.9), 0.25),
)


class _AgnosticPredictor(nn.Module):
    """Logits (n, K+1) and one box (n, 4), whatever the class; in float32, as boxes need it.

    Args:
        hidden: channels of regions.
        num_classes: K.
    """

    def __init__(self, hidden: int, num_classes: int) -> None:
        super().__init__()
        self.cls_score = nn.Linear(hidden, num_classes + 1)
        self.bbox_pred = nn.Linear(hidden, 4)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        return self.cls_score(features).float(), self.bbox_pred(features).float()


class _Regions(NamedTuple):
    """Regions sampled for the loss, by image.

    Attributes:
        boxes: (n, 4).
        labels: (n,) 0 is the background, 1 … K are classes.
        matched: (n,) rows of the targets.
        deltas: (n, 4) from the boxes to the matched ones, coded.
        added: (n,) whether the region is a target's own box.
    """

    boxes: list[Tensor]
    labels: list[Tensor]
    matched: list[Tensor]
    deltas: tuple[Tensor, ...]
    added: list[Tensor]


class CascadeStage(RoIHeads):
    """A box head and a mask head for regions of a certain overlap with objects.

    torchvision's matching, sampling, coding and suppression are used; the loop is ours.

    Args:
        config: options of the head.
        options: of the stage.
        num_classes: K.
    """

    def __init__(self, config: CascadeConfig, options: _StageOptions, num_classes: int) -> None:
        width = config.width
        super().__init__(
            RegionAlign(7),
            TwoMLPHead(width * 7**2, config.hidden),
            _AgnosticPredictor(config.hidden, num_classes),
            fg_iou_thresh=options.overlap,
            bg_iou_thresh=options.overlap,
            batch_size_per_image=config.samples,
            positive_fraction=0.25,
            bbox_reg_weights=options.code,
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.detections,
            mask_roi_pool=RegionAlign(14),
            mask_head=MaskRCNNHeads(width, [width] * config.mask_convolutions, 1),
            mask_predictor=MaskRCNNPredictor(width, width, num_classes),
        )
        self.weight = options.weight

    def box_outputs(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (n, K+1) and deltas (n, 4) of regions (n, C, 7, 7)."""
        logits, deltas = self.box_predictor(self.box_head(features))
        return logits, deltas

    def mask_logits(self, levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """Logits (B·n, K, 28, 28) of the masks in boxes (B, n, 4)."""
        features = self.mask_head(self.mask_roi_pool.cut(levels, boxes))
        logits: Tensor = self.mask_predictor(features)
        return logits

    def refined(self, deltas: Tensor, boxes: list[Tensor], sizes: list[Size]) -> list[Tensor]:
        """Regions moved by their deltas, within their images; without gradient."""
        moved = self.box_coder.decode(deltas.detach(), boxes).reshape(-1, 4)
        parts = moved.split([len(each) for each in boxes])
        return [clip_boxes_to_image(each, size) for each, size in zip(parts, sizes, strict=True)]

    def sampled(self, proposals: list[Tensor], targets: Sequence[DetectionTarget]) -> _Regions:
        """The regions that the loss is computed on; targets' own boxes are among the proposals."""
        truth = [target["boxes"] for target in targets]
        candidates = self.add_gt_proposals(proposals, truth)
        matched, labels = self.assign_targets_to_proposals(
            candidates, truth, [target["labels"] + 1 for target in targets]
        )
        rows = self.subsample(labels)
        boxes = [each[row] for each, row in zip(candidates, rows, strict=True)]
        matched = [each[row] for each, row in zip(matched, rows, strict=True)]
        # A row to look at where an image has no objects; its regions are all background.
        wanted = [
            (each if len(each) else each.new_zeros(1, 4))[row]
            for each, row in zip(truth, matched, strict=True)
        ]
        return _Regions(
            boxes,
            [each[row] for each, row in zip(labels, rows, strict=True)],
            matched,
            self.box_coder.encode(wanted, boxes),
            [row >= len(each) for each, row in zip(proposals, rows, strict=True)],
        )

    def losses(
        self,
        levels: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[Size],
        targets: Sequence[DetectionTarget],
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """Weighted parts of the loss, and the regions of the next stage."""
        regions = self.sampled(proposals, targets)
        logits, deltas = self.box_outputs(self.box_roi_pool(levels, regions.boxes, sizes))
        labels = torch.cat(regions.labels)
        objects = labels > 0
        boxes = F.smooth_l1_loss(
            deltas[objects], torch.cat(regions.deltas)[objects], beta=1.0, reduction="sum"
        )
        positive = [each > 0 for each in regions.labels]
        cut = [each[rows] for each, rows in zip(regions.boxes, positive, strict=True)]
        masks = maskrcnn_loss(
            self.mask_predictor(self.mask_head(self.mask_roi_pool(levels, cut, sizes))),
            cut,
            [target["masks"] for target in targets],
            [target["labels"] for target in targets],
            [each[rows] for each, rows in zip(regions.matched, positive, strict=True)],
        )
        parts = {
            "classification": self.weight * F.cross_entropy(logits, labels),
            "boxes": self.weight * boxes / labels.numel(),
            "masks": self.weight * masks,
        }
        moved = self.refined(deltas, regions.boxes, sizes)
        return parts, [each[~own] for each, own in zip(moved, regions.added, strict=True)]


class CascadeMaskRCNN(RCNN):
    """Three stages with rising demands on the overlap.

    Args:
        config: options.
        make_backbone: builds the backbone.
        num_classes: K; the head counts the background as class 0.
    """

    has_masks = True
    stages: Sequence[CascadeStage]

    def __init__(
        self, config: CascadeConfig, make_backbone: MakeBackbone, num_classes: int
    ) -> None:
        super().__init__(config, make_backbone, num_classes)
        stages = [CascadeStage(config, options, num_classes) for options in _STAGES]
        self.stages = nn.ModuleList(stages)  # type: ignore[assignment]

    def region_losses(
        self,
        levels: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[Size],
        targets: Sequence[DetectionTarget],
    ) -> dict[str, Tensor]:
        """Of each stage ``classification_i``, ``boxes_i`` and ``masks_i``, weighted 1, ½ and ¼."""
        found: dict[str, Tensor] = {}
        for i, stage in enumerate(self.stages, 1):
            parts, proposals = stage.losses(levels, proposals, sizes, targets)
            found |= {f"{name}_{i}": value for name, value in parts.items()}
        return found

    def detections_of(
        self, levels: dict[str, Tensor], regions: Regions, size: Size, valid: Tensor | None
    ) -> dict[str, Tensor]:
        """Boxes of the last stage, classes of the mean logits, mean of the three masks."""
        boxes, logits = regions.boxes, []
        for stage in self.stages:
            before = boxes
            each, deltas = stage.box_outputs(stage.box_roi_pool.cut(levels, before))
            logits.append(each)
            boxes = move_boxes(stage.box_coder, deltas.view(before.shape), before)
            boxes = clip_boxes(boxes, size, valid)
        found = self.select(
            torch.stack(logits).mean(0),
            deltas,
            Regions(before, regions.there),
            stage.box_coder,
            size,
            valid,
        )
        return self.with_masks(found, levels, [stage.mask_logits for stage in self.stages])


@register_head(
    CascadeConfig,
    task="detection",
    sizes={
        "cascade_mask_rcnn": {},
        "cascade_mask_rcnn_pico": {**PICO, "mask_convolutions": 1},
    },
)
def cascade_mask_rcnn(
    config: CascadeConfig, make_backbone: MakeBackbone, num_classes: int
) -> CascadeMaskRCNN:
    """Cascade Mask R-CNN on maps of strides 4, 8, 16 and 32."""
    return CascadeMaskRCNN(config, make_backbone, num_classes)
