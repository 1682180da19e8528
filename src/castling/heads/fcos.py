"""FCOS on any backbone; head, matching and losses are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor
from torchvision.models.detection import FCOS
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from castling.heads.detector import DetectionTarget
from castling.heads.processes import divided_together
from castling.heads.pyramid import PyramidHeadConfig, build_pyramid
from castling.heads.torchvision_detector import OneStageDetector, Width
from castling.models.dense import MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import ClosedUnitInterval, PositiveInt


def _p6_p7(channels: int, width: int) -> LastLevelP6P7:
    """P6 of the pyramid's P5, not of the backbone's map as in RetinaNet."""
    return LastLevelP6P7(width, width)


#: torchvision's head normalises in this many groups.
_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class FCOSConfig(PyramidHeadConfig):
    """Options of FCOS (Tian et al., ICCV 2019); the defaults are those of torchvision.

    A score is √(class · centerness), so that thresholds are higher than elsewhere.

    Attributes:
        candidates: best class scores of each level that suppression looks at.
        convolutions: of each of the two branches, before the outputs.
    """

    name: ClassVar[str] = "fcos"

    score_threshold: ClosedUnitInterval = 0.2
    nms_threshold: ClosedUnitInterval = 0.6
    candidates: PositiveInt = 1000
    convolutions: PositiveInt = 4

    def __post_init__(self) -> None:
        """Check the options."""
        super().__post_init__()
        if self.width % _GROUPS or self.width < 2 * _GROUPS:
            # One channel a group has no variance where a level has one place.
            raise ValueError(
                f"model.head.width is {self.width}; FCOS normalises in {_GROUPS} groups of 2 or "
                f"more channels, so it must be a multiple of {_GROUPS} from {2 * _GROUPS}"
            )


class _Head(FCOSHead):
    """torchvision's, whose losses are divided by the points that learn boxes in all processes."""

    def compute_loss(
        self,
        targets: list[dict[str, Tensor]],
        head_outputs: dict[str, Tensor],
        anchors: list[Tensor],
        matched_idxs: list[Tensor],
    ) -> dict[str, Tensor]:
        """Parts by torchvision's names."""
        parts = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        return divided_together(parts, (torch.stack(matched_idxs) >= 0).sum())


class FCOSDetector(OneStageDetector):
    """FCOS: one point at every place, on the level that its object's size belongs to."""

    def match(
        self, targets: Sequence[DetectionTarget], raw: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        """Focal loss of the classes, GIoU of the boxes, cross entropy of the centreness."""
        every = [torch.cat(anchors)] * len(targets)
        numbers = [len(each) for each in anchors]
        parts: dict[str, Tensor] = self.head.compute_loss(targets, raw, every, numbers)
        return parts

    def scores(self, level: dict[str, Tensor]) -> Tensor:
        """Geometric mean of class and centreness."""
        return (level["cls_logits"].sigmoid() * level["bbox_ctrness"].sigmoid()).sqrt()

    def boxes(self, deltas: Tensor, anchors: Tensor) -> Tensor:
        """Distances of the sides from the point, in strides."""
        boxes: Tensor = self.head.box_coder.decode(deltas, anchors)
        return boxes


@register_head(
    FCOSConfig,
    task="detection",
    sizes={"fcos": {}, "fcos_pico": {"width": 64, "convolutions": 1}},
)
def fcos(config: FCOSConfig, make_backbone: MakeBackbone, num_classes: int) -> FCOSDetector:
    """FCOS on maps of strides 8, 16 and 32."""
    backbone, neck = build_pyramid(config.width, make_backbone, (8, 16, 32), _p6_p7)
    head = FCOS(
        Width(config.width),
        num_classes,
        head=_Head(config.width, 1, num_classes, config.convolutions),
        score_thresh=config.score_threshold,
        nms_thresh=config.nms_threshold,
        detections_per_img=config.detections,
        topk_candidates=config.candidates,
    )
    return FCOSDetector(backbone, neck, head, num_classes)
