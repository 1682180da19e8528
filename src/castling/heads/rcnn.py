"""Faster and Mask R-CNN on any backbone; both stages are torchvision's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads

from castling.heads.detector import DetectionTarget
from castling.heads.regions import RegionAlign
from castling.heads.torchvision_detector import Size, set_branch
from castling.heads.two_stage import PICO, RCNN, RCNNConfig, Regions
from castling.models.dense import MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import PositiveInt

#: torchvision's names of parts of the loss → ours, the same for all heads.
_LOSSES = {"loss_classifier": "classification", "loss_box_reg": "boxes", "loss_mask": "masks"}


@dataclass(frozen=True, kw_only=True)
class FasterRCNNConfig(RCNNConfig):
    """Options of Faster R-CNN (Ren et al., NeurIPS 2015) on a feature pyramid."""

    name: ClassVar[str] = "faster_rcnn"


@dataclass(frozen=True, kw_only=True)
class MaskRCNNConfig(RCNNConfig):
    """Options of Mask R-CNN (He et al., ICCV 2017).

    Attributes:
        mask_convolutions: of the mask head.
    """

    name: ClassVar[str] = "mask_rcnn"

    mask_convolutions: PositiveInt = 4


class _Predictor(FastRCNNPredictor):
    """Logits and deltas in float32: under autocast boxes would be rounded to whole pixels."""

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        logits, deltas = super().forward(features)
        return logits.float(), deltas.float()


class FasterRCNN(RCNN):
    """One box head on each region.

    Args:
        config: options.
        make_backbone: builds the backbone.
        num_classes: K; the head counts the background as class 0.
    """

    def __init__(self, config: RCNNConfig, make_backbone: MakeBackbone, num_classes: int) -> None:
        super().__init__(config, make_backbone, num_classes)
        pool = RegionAlign(7)
        self.roi_heads = RoIHeads(
            pool,
            TwoMLPHead(config.width * 7**2, config.hidden),
            _Predictor(config.hidden, num_classes + 1),
            fg_iou_thresh=0.5,
            bg_iou_thresh=0.5,
            batch_size_per_image=config.samples,
            positive_fraction=0.25,
            bbox_reg_weights=None,
            score_thresh=config.score_threshold,
            nms_thresh=config.nms_threshold,
            detections_per_img=config.detections,
        )

    def region_losses(
        self,
        levels: dict[str, Tensor],
        proposals: list[Tensor],
        sizes: list[Size],
        targets: Sequence[DetectionTarget],
    ) -> dict[str, Tensor]:
        """Cross entropy of regions, smooth L1 of objects' boxes, and with masks their entropy."""
        shifted = [{**target, "labels": target["labels"] + 1} for target in targets]
        with set_branch(self.roi_heads, training=True):
            _, parts = self.roi_heads(levels, proposals, sizes, shifted)
        return {_LOSSES[name]: value for name, value in parts.items()}

    def detections_of(
        self, levels: dict[str, Tensor], regions: Regions, size: Size, valid: Tensor | None
    ) -> dict[str, Tensor]:
        """The best classes of regions, and their boxes moved."""
        heads = self.roi_heads
        features = heads.box_head(heads.box_roi_pool.cut(levels, regions.boxes))
        logits, deltas = heads.box_predictor(features)
        return self.select(logits, deltas, regions, heads.box_coder, size, valid)


class MaskRCNN(FasterRCNN):
    """Faster R-CNN with a mask of 28×28 places for each region and class."""

    has_masks = True

    def __init__(
        self, config: MaskRCNNConfig, make_backbone: MakeBackbone, num_classes: int
    ) -> None:
        super().__init__(config, make_backbone, num_classes)
        width = config.width
        self.roi_heads.mask_roi_pool = RegionAlign(14)
        self.roi_heads.mask_head = MaskRCNNHeads(width, [width] * config.mask_convolutions, 1)
        self.roi_heads.mask_predictor = MaskRCNNPredictor(width, width, num_classes + 1)

    def detections_of(
        self, levels: dict[str, Tensor], regions: Regions, size: Size, valid: Tensor | None
    ) -> dict[str, Tensor]:
        """Those of Faster R-CNN, and the masks of their classes."""
        found = super().detections_of(levels, regions, size, valid)
        return self.with_masks(found, levels, [self._mask_logits])

    def _mask_logits(self, levels: dict[str, Tensor], boxes: Tensor) -> Tensor:
        """Without the background, which has a mask too."""
        heads = self.roi_heads
        features = heads.mask_head(heads.mask_roi_pool.cut(levels, boxes))
        logits: Tensor = heads.mask_predictor(features)[:, 1:]
        return logits


@register_head(
    FasterRCNNConfig, task="detection", sizes={"faster_rcnn": {}, "faster_rcnn_pico": PICO}
)
def faster_rcnn(
    config: FasterRCNNConfig, make_backbone: MakeBackbone, num_classes: int
) -> FasterRCNN:
    """Faster R-CNN on maps of strides 4, 8, 16 and 32."""
    return FasterRCNN(config, make_backbone, num_classes)


@register_head(
    MaskRCNNConfig,
    task="detection",
    sizes={"mask_rcnn": {}, "mask_rcnn_pico": {**PICO, "mask_convolutions": 1}},
)
def mask_rcnn(config: MaskRCNNConfig, make_backbone: MakeBackbone, num_classes: int) -> MaskRCNN:
    """Mask R-CNN on maps of strides 4, 8, 16 and 32."""
    return MaskRCNN(config, make_backbone, num_classes)
