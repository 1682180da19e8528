"""RetinaNet on any backbone; head, anchors, matching and focal loss are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator

from castling.heads.detector import DetectionTarget
from castling.heads.fpn import p6_p7
from castling.heads.pyramid import PyramidHeadConfig, build_pyramid
from castling.heads.torchvision_detector import OneStageDetector, Width
from castling.models.dense import MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class RetinaNetConfig(PyramidHeadConfig):
    """Options of RetinaNet (Lin et al., ICCV 2017); the defaults are those of torchvision.

    Attributes:
        candidates: best class scores of each level that suppression looks at.
        anchor_scale: side of the smallest anchor of a level in strides of the level. At 4 they are
            32 to 813 pixels; less for small objects in small images.
    """

    name: ClassVar[str] = "retinanet"

    candidates: PositiveInt = 1000
    anchor_scale: PositiveFloat = 4.0


def _anchors(config: RetinaNetConfig) -> AnchorGenerator:
    """Three sizes a third of an octave apart, each in three shapes."""
    sides = [config.anchor_scale * stride for stride in OneStageDetector.strides]
    sizes = tuple(tuple(int(side * 2 ** (third / 3)) for third in range(3)) for side in sides)
    return AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))


class RetinaNetDetector(OneStageDetector):
    """RetinaNet: nine anchors at every place."""

    def match(
        self, targets: Sequence[DetectionTarget], raw: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Focal loss of the classes, L1 of the deltas."""
        every = [torch.cat(anchors)] * len(targets)
        parts: dict[str, Tensor] = self.head.compute_loss(targets, raw, every)
        return parts

    def scores(self, level: dict[str, Tensor]) -> Tensor:
        """Sigmoids of the logits."""
        return level["cls_logits"].sigmoid()

    def boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Anchors moved and scaled by the deltas."""
        moved = self.head.box_coder.decode_single(deltas.flatten(0, 1), anchors.flatten(0, 1))
        boxes: Tensor = moved.view(deltas.shape)
        return boxes


@register_head(
    RetinaNetConfig, task="detection", sizes={"retinanet": {}, "retinanet_pico": {"width": 32}}
)
def retinanet(
    config: RetinaNetConfig, make_backbone: MakeBackbone, num_classes: int
) -> RetinaNetDetector:
    """RetinaNet on maps of strides 8, 16 and 32."""
    backbone, neck = build_pyramid(config.width, make_backbone, (8, 16, 32), p6_p7)
    head = RetinaNet(
        Width(config.width),
        num_classes,
        anchor_generator=_anchors(config),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.detections,
        topk_candidates=config.candidates,
    )
    return RetinaNetDetector(backbone, neck, head, num_classes)
