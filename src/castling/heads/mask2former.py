"""Mask2Former on any backbone: queries find segments, each with a class and a mask.

Cheng et al., "Masked-attention Mask Transformer for Universal Image Segmentation" (CVPR 2022).
Layers, initial weights and the terms of the loss are transformers' (``castling[segmentation]``).

Notable:
- what :meth:`Mask2Former.forward` gives are the maps behind the pixel decoder: queries attend
  inside their masks, cut at ½, so the query decoder is no continuous function; it belongs to
  :meth:`Mask2Former.scores`;
- ignored pixels neither teach nor count, see ``mask2former_loss``;
- images of any size whose sides are multiples of the coarsest stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from castling.heads.mask2former_network import LEVELS, Segments, build_network
from castling.heads.pyramid import maps_of
from castling.heads.segmenter import Segmenter, check_masks
from castling.heads.strides import check_strides
from castling.models.backbone import Backbone
from castling.models.dense import HeadConfig, MakeBackbone, register_head

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeFloat, PositiveInt

#: Groups of the pixel decoder's normalisation.
_GROUPS = 32


@dataclass(frozen=True, kw_only=True)
class Mask2FormerConfig(HeadConfig):
    """Options of Mask2Former; the defaults are the published ones.

    Attributes:
        width: channels of both decoders, of the masks, and of the simple pyramid on plain vision
            transformers.
        pixel_layers: of deformable attention in the pixel decoder.
        pixel_feedforward: hidden width of their feed-forward layers.
        query_layers: of masked attention.
        query_feedforward: hidden width of their feed-forward layers.
        attention_heads: of all of them.
        queries: number of segments that can be found.
        class_weight: of the cross entropy of the classes.
        mask_weight: of the binary cross entropy of the masks.
        dice_weight: of the Dice loss of the masks.
        no_object_weight: of queries without a segment in the cross entropy.
        points: at which a mask is compared.
        strides: of the maps; masks have the first, the last three are attended to.
    """

    name: ClassVar[str] = "mask2former"

    width: PositiveInt = 256
    pixel_layers: PositiveInt = 6
    pixel_feedforward: PositiveInt = 1024
    query_layers: PositiveInt = 9
    query_feedforward: PositiveInt = 2048
    attention_heads: PositiveInt = 8
    queries: PositiveInt = 100
    class_weight: NonNegativeFloat = 2.0
    mask_weight: NonNegativeFloat = 5.0
    dice_weight: NonNegativeFloat = 5.0
    no_object_weight: NonNegativeFloat = 0.1
    points: PositiveInt = 12544
    strides: tuple[PositiveInt, ...] = (4, 8, 16, 32)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        super().__post_init__()
        check_strides(self.strides, LEVELS)
        if self.width % _GROUPS:
            raise ValueError(
                f"model.head.width is {self.width}; it must be a multiple of {_GROUPS}, the "
                "groups of its normalisation"
            )
        if self.width % self.attention_heads:
            raise ValueError(
                f"model.head.width is {self.width}; it must be a multiple of attention_heads = "
                f"{self.attention_heads}"
            )


class Mask2Former(Segmenter):
    """Mask2Former.

    Args:
        config: its options.
        backbone: with the maps that the neck takes.
        neck: gives maps of the strides.
        channels: of these.
        num_classes: K.
    """

    def __init__(
        self,
        config: Mask2FormerConfig,
        backbone: Backbone,
        neck: nn.Module,
        channels: Sequence[int],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.num_classes, self.multiple = num_classes, config.strides[-1]
        self.config, self.backbone, self.neck = config, backbone, neck
        self.pixel_decoder, self.query_decoder = build_network(
            channels, config.strides, num_classes, _options(config)
        )
        self._names = [f"map_{stride}" for stride in reversed(config.strides[-LEVELS:])]

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps behind the pixel decoder.

        Args:
            images: (B, 3, H, W), normalised; H and W multiples of ``multiple``.

        Returns:
            ``map_32``, ``map_16`` and ``map_8`` (B, width, h, w), which queries attend to, and
            ``features`` (B, width, H/4, W/4), whose products with queries are masks; of other
            strides where the options say so.
        """
        levels, features = self.pixel_decoder(self.neck(self.backbone(images)))
        return {**dict(zip(self._names, levels, strict=True)), "features": features}

    def scores(self, raw: dict[str, Tensor]) -> Tensor:
        """(B, K, h, w): each query's class probabilities times its mask, summed over the queries.

        In [0, queries]; the class is the largest.
        """
        found = self._segments(raw)[-1]
        classes = found.classes.float().softmax(-1)[..., :-1]
        masks = found.masks.float().sigmoid()
        height, width = masks.shape[-2:]
        return (classes.mT @ masks.flatten(2)).unflatten(2, (height, width))

    def probabilities(self, scores: Tensor) -> Tensor:
        """(B, K, h, w): scores divided by their sum; equal where no query sees anything."""
        scores = scores + torch.finfo(scores.dtype).tiny * 1e6
        return scores / scores.sum(1, keepdim=True)

    def losses(
        self, images: Tensor, masks: Tensor, class_weights: Tensor | None = None
    ) -> dict[str, Tensor]:
        """See :class:`Segmenter`: ``class``, ``mask`` and ``dice``, summed over the layers.

        ``class_weights`` weigh the classes of segments, not their masks.
        """
        check_masks(masks, len(images), self.num_classes, class_weights)
        from castling.heads.mask2former_loss import SegmentLoss, truth_of

        config = self.config
        loss = SegmentLoss(
            config.class_weight,
            config.mask_weight,
            config.dice_weight,
            config.no_object_weight,
            config.points,
        )
        truths = [truth_of(mask) for mask in masks]
        layers = self._segments(self(images))
        parts = [loss(found, truths, class_weights) for found in layers]
        # DDP wants a gradient of each parameter, also where a batch has no labels.
        nothing = sum((found.classes.sum() + found.masks.sum()) * 0 for found in layers)
        total = {name: torch.stack([part[name] for part in parts]).sum() for name in parts[0]}
        return {**total, "class": total["class"] + nothing}

    def _segments(self, raw: dict[str, Tensor]) -> list[Segments]:
        levels = [raw[name] for name in self._names]
        found: list[Segments] = self.query_decoder(levels, raw["features"])
        return found


def _options(config: Mask2FormerConfig) -> dict[str, Any]:
    """The options by transformers' names."""
    return {
        "feature_size": config.width,
        "mask_feature_size": config.width,
        "hidden_dim": config.width,
        "encoder_layers": config.pixel_layers,
        "encoder_feedforward_dim": config.pixel_feedforward,
        "decoder_layers": config.query_layers + 1,  # it counts the masks before the first
        "dim_feedforward": config.query_feedforward,
        "num_attention_heads": config.attention_heads,
        "num_queries": config.queries,
    }


@register_head(
    Mask2FormerConfig,
    task="segmentation",
    sizes={
        "mask2former": {},
        "mask2former_pico": {
            **{"width": 32, "pixel_layers": 1, "pixel_feedforward": 32, "query_layers": 3},
            **{"query_feedforward": 32, "attention_heads": 4, "queries": 10, "points": 256},
        },
    },
)
def mask2former(
    config: Mask2FormerConfig, make_backbone: MakeBackbone, num_classes: int
) -> Mask2Former:
    """Mask2Former; on a plain vision transformer behind a simple pyramid."""
    backbone, neck, channels = maps_of(config.width, make_backbone, config.strides)
    return Mask2Former(config, backbone, neck, channels, num_classes)
