"""SimMIM: masked pixels told from a whole grid, for every backbone.

Xie et al., "SimMIM: A Simple Framework for Masked Image Modeling" (CVPR 2022, arXiv 2111.09886).
What is hidden is replaced, not left out, so that convolutions, windows and pyramids work as they
are. Their token stands behind the patch embedding; here it is a learned square of pixels in front
of the network, which every stem takes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.heads.masking import pixels_of, random_masks
from castling.heads.pretrainer import Pretrainer
from castling.models.backbone import Backbone
from castling.models.dense import HeadConfig, MakeBackbone, register_head
from castling.utils.randomness import Keys

if TYPE_CHECKING:
    from jsonargparse.typing import OpenUnitInterval, PositiveInt


@dataclass(frozen=True, kw_only=True)
class SimMIMConfig(HeadConfig):
    """Options of SimMIM.

    Attributes:
        mask_ratio: share of the units that are hidden, at random for each image.
        unit: side of what is hidden as one, in pixels; 32 for images of about 200 pixels.
        learned: replace what is hidden by a learned square of pixels, which begins at zero; False
            leaves it at zero, the mean colour.
    """

    name: ClassVar[str] = "simmim"

    mask_ratio: OpenUnitInterval = 0.6
    unit: PositiveInt = 32
    learned: bool = True


class SimMIM(Pretrainer):
    """Backbone, and one linear layer from each place of its coarsest map to that place's pixels.

    Args:
        config: its options.
        backbone: with one map.
    """

    mask_token: Tensor

    def __init__(self, config: SimMIMConfig, backbone: Backbone) -> None:
        (stride,) = backbone.strides
        super().__init__(backbone, math.lcm(stride, config.unit))
        self.config, self.stride = config, stride
        token = torch.zeros(1, 3, config.unit, config.unit)
        if config.learned:
            self.mask_token = nn.Parameter(token)
        else:
            self.register_buffer("mask_token", token, persistent=False)
        self.pixels = nn.Conv2d(backbone.channels[0], 3 * stride * stride, 1)

    def no_weight_decay(self) -> set[str]:
        """Parameters that are no weights."""
        return {"mask_token"}

    def _hidden(self, images: Tensor, keys: Keys) -> Tensor:
        """(B, 1, H, W) boolean."""
        unit = self.config.unit
        height, width = images.shape[-2:]
        if height % self.multiple or width % self.multiple:
            raise ValueError(
                f"images of {height}×{width} pixels: the sides must be multiples of {self.multiple}"
                f" (masked in units of {unit} pixels, a map of stride {self.stride}); change "
                "data.transform.image_size or model.head.unit"
            )
        grid = height // unit, width // unit
        masks = random_masks(keys, grid, self.config.mask_ratio, 1, images.device)
        return pixels_of(masks.hidden, grid, unit)

    def shown(self, images: Tensor, hidden: Tensor) -> Tensor:
        """The images with what is ``hidden`` (B, 1, H, W) replaced."""
        height, width = images.shape[-2:]
        unit = self.config.unit
        token = self.mask_token.to(images.dtype).repeat(1, 1, height // unit, width // unit)
        return torch.where(hidden, token, images)

    def predicted(self, images: Tensor, hidden: Tensor) -> Tensor:
        """(B, 3, H, W) pixels of every place."""
        (features,) = self.backbone(self.shown(images, hidden))
        return F.pixel_shuffle(self.pixels(features), self.stride).float()

    def image_losses(self, images: Tensor, keys: Keys) -> Tensor:
        """Mean absolute error of the hidden pixels."""
        hidden = self._hidden(images, keys)
        errors = (self.predicted(images, hidden) - images).abs().masked_fill(~hidden, 0)
        return errors.sum((1, 2, 3)) / (3 * hidden.sum((1, 2, 3)))

    def pictures(self, images: Tensor, keys: Keys) -> dict[str, Tensor]:
        """``masked``, and ``reconstruction``: what is visible and what is told of the rest."""
        hidden = self._hidden(images, keys)
        filled = torch.where(hidden, self.predicted(images, hidden), images)
        return {"masked": images.masked_fill(hidden, 0), "reconstruction": filled}


@register_head(SimMIMConfig, task="pretraining")
def simmim(config: SimMIMConfig, make_backbone: MakeBackbone, num_classes: int) -> SimMIM:
    """SimMIM on any backbone that gives feature maps; ``num_classes`` does not matter."""
    return SimMIM(config, make_backbone.coarsest())
