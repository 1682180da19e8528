"""PicoDet: the small one-stage detector of Castling-ViT's detection experiments.

Yu et al., "PP-PicoDet: A Better Real-Time Object Detector on Mobile Devices" (arXiv 2111.00902):
backbone → CSP-PAN → one head per level at strides 8, 16, 32, 64.

Notable:
- an object can be at most 2·reg_max strides large at the coarsest level: 883 pixels with the
  published 7; raise ``reg_max`` for larger ones;
- decoding and suppression have fixed shapes, so the whole detector can be exported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from castling.heads.csp_pan import CSPPAN
from castling.heads.detector import DetectionTarget, Detector
from castling.heads.picodet_head import (
    PicoDetHead,
    boxes_around,
    by_point,
    distances,
    points_of,
)
from castling.heads.picodet_loss import Points, picodet_losses
from castling.heads.pyramid import maps_of
from castling.heads.selection import best_pairs, clip_boxes, keep_best, take
from castling.heads.sim_ota import SimOTA
from castling.models.backbone import Backbone
from castling.models.dense import HeadConfig, MakeBackbone, register_head

if TYPE_CHECKING:  # jsonargparse loads late
    from jsonargparse.typing import (
        ClosedUnitInterval,
        NonNegativeFloat,
        PositiveFloat,
        PositiveInt,
    )

_STRIDES = (8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class PicoDetConfig(HeadConfig):
    """Options of PicoDet.

    Attributes:
        width: channels of neck and head, even.
        blocks: depthwise separable convolutions of the head at each level.
        reg_max: largest distance of a box's side from a point, in strides.
        class_weight: of the varifocal loss.
        box_weight: of the GIoU loss.
        distribution_weight: of the distribution focal loss.
        radius: of the region around an object's centre whose points may learn it, in strides.
        candidates: how many overlaps SimOTA sums to an object's number of points.
        iou_weight: of 1 − GIoU in SimOTA's cost.
        score_threshold: detections below it are dropped.
        candidates_per_level: how many of each level's best scores are decoded.
        nms_threshold: overlap above which the worse of two boxes of a class is dropped.
        detections: how many are kept per image.
    """

    name: ClassVar[str] = "picodet"

    width: PositiveInt = 96
    blocks: PositiveInt = 2
    reg_max: PositiveInt = 7
    class_weight: NonNegativeFloat = 1.0
    box_weight: NonNegativeFloat = 2.0
    distribution_weight: NonNegativeFloat = 0.25
    radius: PositiveFloat = 2.5
    candidates: PositiveInt = 10
    iou_weight: NonNegativeFloat = 6.0
    score_threshold: ClosedUnitInterval = 0.025
    candidates_per_level: PositiveInt = 1000
    nms_threshold: ClosedUnitInterval = 0.6
    detections: PositiveInt = 100

    def __post_init__(self) -> None:
        from castling.utils.checks import check_fields

        check_fields(self, "model.head")
        if self.width % 2:
            raise ValueError(f"model.head.width is {self.width}; it must be even")


class PicoDet(Detector):
    """PicoDet on any backbone.

    Args:
        config: its options.
        backbone: with the maps that the pyramid takes.
        pyramid: gives maps of strides 8, 16 and 32.
        channels: of these.
        num_classes: K.
    """

    def __init__(
        self,
        config: PicoDetConfig,
        backbone: Backbone,
        pyramid: nn.Module,
        channels: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.config, self.num_classes, self.detections = config, num_classes, config.detections
        self.backbone, self.pyramid = backbone, pyramid
        self.neck = CSPPAN(channels, config.width)
        self.strides = (*_STRIDES, 2 * _STRIDES[-1])
        self.head = PicoDetHead(
            config.width, num_classes, config.blocks, self.strides, config.reg_max
        )
        self.assign = SimOTA(config.radius, config.candidates, config.iou_weight)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """See :class:`Detector`; per stride s: ``logits_s`` and ``bins_s``, see PicoDetHead."""
        found: dict[str, Tensor] = self.head(self.neck(self.pyramid(self.backbone(images))))
        return found

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """See :class:`Detector`; the parts are ``class``, ``box`` and ``distribution``."""
        config, raw = self.config, self(images)
        logits, bins, centres, strides = [], [], [], []
        for stride in self.strides:
            points = points_of(raw[f"logits_{stride}"], stride)
            logits.append(by_point(raw[f"logits_{stride}"]))
            bins.append(by_point(raw[f"bins_{stride}"]))
            centres.append(points)
            strides.append(torch.full_like(points[:, 0], stride))
        found = Points(
            torch.cat(logits, 1), torch.cat(bins, 1), torch.cat(centres), torch.cat(strides)
        )
        parts = picodet_losses(found, targets, self.assign, config.reg_max)
        return {
            "class": config.class_weight * parts["class"],
            "box": config.box_weight * parts["box"],
            "distribution": config.distribution_weight * parts["distribution"],
        }

    def decode(
        self, raw: dict[str, Tensor], size: tuple[int, int], valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :class:`Detector`."""
        levels = [self._candidates(raw, stride) for stride in self.strides]
        boxes, scores, labels = (torch.cat(each, dim=1) for each in zip(*levels, strict=True))
        return keep_best(
            clip_boxes(boxes, size, valid),
            scores,
            labels,
            threshold=self.config.nms_threshold,
            keep=self.detections,
            num_classes=self.num_classes,
        )

    def _candidates(self, raw: dict[str, Tensor], stride: int) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (B, n, 4), scores (B, n), labels (B, n): the best pairs of point and class."""
        config = self.config
        scores = by_point(raw[f"logits_{stride}"]).sigmoid()
        best = best_pairs(scores, config.score_threshold, config.candidates_per_level)
        bins = take(by_point(raw[f"bins_{stride}"]), best.places)
        centres = points_of(raw[f"logits_{stride}"], stride)[best.places]
        boxes = boxes_around(centres, distances(bins, config.reg_max) * stride)
        return boxes, best.scores, best.labels


@register_head(
    PicoDetConfig,
    task="detection",
    sizes={
        "picodet_s": {"width": 96, "blocks": 2},
        "picodet_m": {"width": 128, "blocks": 4},
        "picodet_l": {"width": 160, "blocks": 4},
        "picodet_pico": {"width": 32, "blocks": 1},
    },
)
def picodet(config: PicoDetConfig, make_backbone: MakeBackbone, num_classes: int) -> PicoDet:
    """PicoDet; on a plain vision transformer behind a simple pyramid."""
    return PicoDet(config, *maps_of(config.width, make_backbone, _STRIDES), num_classes)
