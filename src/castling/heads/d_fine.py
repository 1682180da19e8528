"""D-FINE on any backbone: queries refined by a decoder, boxes as distributions, no suppression.

Peng et al., "D-FINE: Redefine Regression Task in DETRs as Fine-grained Distribution Refinement"
(ICLR 2025, arXiv 2410.13842). Neck, decoder, denoising and loss are those of transformers
(``castling[detection]``); only what surrounds them is ours.

Notable:
- what :meth:`DFine.forward` gives are the maps behind the neck: which queries are decoded is a
  choice among them, so the decoder belongs to :meth:`DFine.decode`;
- images of any size whose sides are multiples of the coarsest stride;
- denoising queries are there in training only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import pad
from torchvision.ops import box_convert

from castling.heads.d_fine_network import build_network
from castling.heads.detector import DetectionTarget, Detector
from castling.heads.processes import divided_together
from castling.heads.pyramid import maps_of
from castling.heads.strides import check_strides
from castling.models.backbone import Backbone
from castling.models.dense import HeadConfig, MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt, PositiveFloat, PositiveInt

#: transformers' names of the parts of the loss, each of every decoder layer, and ours.
_PARTS = {
    "vfl": "varifocal",
    "bbox": "l1",
    "giou": "giou",
    "fgl": "fine_grained",
    "ddf": "distillation",
}
#: Denoising takes memory that grows with the square of the objects in an image: not beyond these.
MOST_DENOISED = 500


@dataclass(frozen=True, kw_only=True)
class DFineConfig(HeadConfig):
    """Options of D-FINE.

    Attributes:
        width: channels of neck and decoder.
        decoder_layers: each refines the boxes of the one before.
        attention_heads: of encoder and decoder.
        feedforward: hidden width of their feed-forward layers.
        expansion: width of the convolution blocks in the neck, relative to ``width``.
        depth: number of convolutions in these blocks, relative to 3.
        points: sampled per query and attention head in each map.
        queries: number of candidates decoded.
        denoising: number of queries made of noisy true boxes in training; 0 is off.
        strides: of the maps used, in pixels, each twice the one before.
        detections: given per image.
    """

    name: ClassVar[str] = "d_fine"
    width: PositiveInt = 128
    decoder_layers: PositiveInt = 3
    attention_heads: PositiveInt = 8
    feedforward: PositiveInt = 256
    expansion: PositiveFloat = 0.5
    depth: PositiveFloat = 0.34
    points: tuple[PositiveInt, ...] = (3, 6, 3)
    queries: PositiveInt = 300
    denoising: NonNegativeInt = 100
    strides: tuple[PositiveInt, ...] = (8, 16, 32)
    detections: PositiveInt = 100

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        check_strides(self.strides, 2)
        if len(self.points) != len(self.strides):
            raise ValueError(
                f"model.head.points has {len(self.points)} numbers for {len(self.strides)} strides"
            )
        if self.width % (4 * self.attention_heads):
            raise ValueError(
                f"model.head.width is {self.width}; it must be a multiple of "
                f"4·attention_heads = {4 * self.attention_heads}"
            )


#: The published sizes are n, s, m and l (theirs have HGNetv2 backbones); ``d_fine`` is smaller than
#: s, for backbones of a few million parameters.
SIZES: dict[str, dict[str, Any]] = {
    "d_fine": {},
    "d_fine_n": {
        **{"strides": (16, 32), "points": (6, 6), "feedforward": 512},
        **{"expansion": 0.34, "depth": 0.5},
    },
    "d_fine_s": {"width": 256, "feedforward": 1024},
    "d_fine_m": {
        **{"width": 256, "feedforward": 1024, "expansion": 1.0},
        **{"depth": 0.67, "decoder_layers": 4},
    },
    "d_fine_l": {
        **{"width": 256, "feedforward": 1024, "expansion": 1.0},
        **{"depth": 1.0, "decoder_layers": 6},
    },
    "d_fine_pico": {
        **{"width": 32, "decoder_layers": 2, "attention_heads": 4, "feedforward": 32},
        **{"points": (2, 2), "queries": 40, "denoising": 20, "strides": (8, 16)},
    },
}


class DFine(Detector):
    """D-FINE.

    Args:
        config: its options.
        backbone: with the maps that the pyramid takes.
        pyramid: gives maps of the strides.
        channels: of these.
        num_classes: K.
    """

    def __init__(
        self,
        config: DFineConfig,
        backbone: Backbone,
        pyramid: nn.Module,
        channels: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.multiple = config.strides[-1]
        self.detections = config.detections
        self.config = config
        self.backbone, self.pyramid = backbone, pyramid
        self.neck, self.head, self._options = build_network(channels, num_classes, _options(config))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps behind the neck, ``map_8`` (B, width, H/8, W/8) and so on.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of ``multiple``.
        """
        maps = self.neck(self.pyramid(self.backbone(images)))
        names = (f"map_{stride}" for stride in self.config.strides)
        return dict(zip(names, maps, strict=True))

    def losses(self, images: Tensor, targets: Sequence[DetectionTarget]) -> dict[str, Tensor]:
        """Parts of the published loss, each summed over decoder layers and denoising queries.

        Varifocal loss of the classes, L1 and generalised IoU of the boxes, fine-grained
        localisation of the distributions and their distillation from the last layer (section 4).
        """
        from transformers.loss.loss_d_fine import DFineForObjectDetectionLoss

        height, width = images.shape[-2:]
        scale = images.new_tensor([width, height, width, height])
        labels = [
            {
                "class_labels": target["labels"],
                "boxes": box_convert(target["boxes"], "xyxy", "cxcywh") / scale,
            }
            for target in targets
        ]
        counts = [len(target["labels"]) for target in targets]
        most, objects = max(counts), sum(counts)
        denoised = self.training and 0 < most <= MOST_DENOISED
        found = self.head(self._maps(self(images)), labels if denoised else None)
        _, parts, _ = DFineForObjectDetectionLoss(
            found.logits[:, -1],
            labels,
            images.device,
            found.boxes[:, -1],
            self._options,
            found.logits,
            found.boxes,
            enc_topk_logits=found.chosen_logits,
            enc_topk_bboxes=found.chosen_boxes,
            denoising_meta_values=found.denoising,
            predicted_corners=found.corners,
            initial_reference_points=found.references,
        )
        # Distillation alone is not divided by the number of boxes.
        counted = {name: part for name, part in parts.items() if not name.startswith("loss_ddf")}
        parts |= divided_together(counted, torch.as_tensor(objects, device=images.device))
        zero = images.new_zeros(())
        if self.head.noisy_class is not None and not denoised:
            zero = self.head.noisy_class.weight.sum() * 0  # DDP wants a gradient of each parameter
        return {
            ours: sum((part for name, part in parts.items() if name.split("_")[1] == theirs), zero)
            for theirs, ours in _PARTS.items()
        }

    def decode(
        self, raw: dict[str, Tensor], size: tuple[int, int], valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Decode the queries and take the best pairs of query and class: as DETR, no suppression.

        See :meth:`Detector.decode`.
        """
        found = self.head(self._maps(raw))
        logits, boxes = found.logits[:, -1], found.boxes[:, -1]
        count = min(self.detections, logits.shape[1] * self.num_classes)
        scores, best = logits.sigmoid().flatten(1).topk(count, dim=1)
        query = (best // self.num_classes).unsqueeze(-1).expand(-1, -1, 4)
        cx, cy, w, h = boxes.gather(1, query).unbind(-1)
        # Sizes of a graph are no tensors: sides are scaled one by one.
        height, width = size
        limits: Any = (height, width) if valid is None else valid.to(boxes).unsqueeze(-1).unbind(1)
        x = [(edge * width).clamp(min=0).clamp(max=limits[1]) for edge in (cx - w / 2, cx + w / 2)]
        y = [(edge * height).clamp(min=0).clamp(max=limits[0]) for edge in (cy - h / 2, cy + h / 2)]
        corners = torch.stack([x[0], y[0], x[1], y[1]], dim=-1)
        missing = self.detections - count
        return {
            "boxes": pad(corners, (0, 0, 0, missing)),
            "scores": pad(scores, (0, missing)),
            "labels": pad(best % self.num_classes, (0, missing)),
        }

    def _maps(self, raw: dict[str, Tensor]) -> list[Tensor]:
        return [raw[f"map_{stride}"] for stride in self.config.strides]


def _options(config: DFineConfig) -> dict[str, Any]:
    """The options by transformers' names."""
    return {
        "feat_strides": list(config.strides),
        "decoder_in_channels": [config.width] * len(config.strides),
        "encoder_hidden_dim": config.width,
        "d_model": config.width,
        "encoder_attention_heads": config.attention_heads,
        "decoder_attention_heads": config.attention_heads,
        "encoder_ffn_dim": config.feedforward,
        "decoder_ffn_dim": config.feedforward,
        "hidden_expansion": config.expansion,
        "depth_mult": config.depth,
        "decoder_layers": config.decoder_layers,
        "decoder_n_points": list(config.points),
        "num_queries": config.queries,
        "num_denoising": config.denoising,
    }


@register_head(DFineConfig, task="detection", sizes=SIZES)
def d_fine(config: DFineConfig, make_backbone: MakeBackbone, num_classes: int) -> DFine:
    """D-FINE: queries refined by a decoder; on a plain ViT behind a simple pyramid."""
    return DFine(config, *maps_of(config.width, make_backbone, config.strides), num_classes)
