"""What every model of pre-training offers; the task, the switch and exports know nothing else."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from castling.attention.base import AttentionCore
from castling.models.backbone import Backbone
from castling.utils.randomness import Keys


class Pretrainer(nn.Module):
    """Learns from images alone: backbone → head. Only the backbone is of use afterwards.

    Auxiliary branches of the backbone keep their first threshold all through pre-training: the
    mask is to be emptied in the final task, for whose number of tokens and data the model is then
    made.

    Args:
        backbone: what is to be trained.
        multiple: sides of images must be multiples of this many pixels.
    """

    def __init__(self, backbone: Backbone, multiple: int = 1) -> None:
        super().__init__()
        self.backbone = backbone
        self.multiple = multiple
        hold_auxiliaries(backbone)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """``features`` (B, C, h, w) of whole, normalised images (B, 3, H, W): nothing is hidden."""
        return {"features": self.backbone(images)[-1]}

    def image_losses(self, images: Tensor, keys: Keys) -> Tensor:
        """(B,) loss of each image.

        Args:
            images: (B, 3, H, W), normalised.
            keys: (B,); whatever is hidden of an image follows from its key.
        """
        raise NotImplementedError

    def pictures(self, images: Tensor, keys: Keys) -> dict[str, Tensor]:
        """What the model is shown and what it makes of it, for people, by name.

        Arguments as of :meth:`image_losses`; each (B, 3, H, W), in the images' own normalisation.
        """
        raise NotImplementedError


def hold_auxiliaries(model: nn.Module) -> None:
    """Give every auxiliary branch the schedule ``"constant"``, in place."""
    for module in model.modules():
        if isinstance(module, AttentionCore) and module.auxiliary is not None:
            held = dataclasses.replace(module.auxiliary.config, schedule="constant")
            module.auxiliary.config = held
            module.auxiliary.reset_parameters()
            module.config = dataclasses.replace(module.config, auxiliary=held)
