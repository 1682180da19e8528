"""What is timed of a model, and what of its outputs is compared before.

Of a detector all is timed, decoding and suppression included, of a segmenter the label of every
pixel, as it would be deployed. Their raw outputs are compared: benchmarks run untrained weights,
whose equal scores the last bit would order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from castling.export.outputs import name_outputs
from castling.heads.detector import Detector
from castling.heads.segmenter import Segmenter

#: What :meth:`castling.heads.Detector.decode` gives.
_DETECTIONS = frozenset({"boxes", "scores", "labels", "masks"})


class WholeModel(nn.Module):
    """A dense model that returns its raw outputs and what is concluded from them.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Detector | Segmenter) -> None:
        super().__init__()
        self.model = model
        self.train(model.training)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Of normalised images (B, 3, H, W)."""
        return self.model.inference(images)


def whole(model: nn.Module) -> nn.Module:
    """What is timed: detectors with decoding, segmenters with labels, others as they are."""
    return WholeModel(model) if isinstance(model, Detector | Segmenter) else model


def compared(outputs: Any) -> dict[str, Tensor]:
    """The floating-point tensors of a model's outputs, by name; of a dense model the raw ones."""
    return {
        name: value
        for name, value in name_outputs(outputs).items()
        if name not in _DETECTIONS and value.is_floating_point()
    }
