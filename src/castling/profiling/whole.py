"""What is timed of a model, and what of its outputs is compared before.

Of a detector all is timed, decoding and suppression included, as it would be deployed. Its raw
outputs are compared: benchmarks run untrained weights, whose equal scores the last bit would order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from castling.export.outputs import name_outputs
from castling.heads.detector import Detector

#: What :meth:`castling.heads.Detector.decode` gives.
_DETECTIONS = frozenset({"boxes", "scores", "labels", "masks"})


class WholeDetector(nn.Module):
    """A detector that returns its raw outputs and its detections.

    Args:
        detector: in evaluation mode.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.train(detector.training)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Of normalised images (B, 3, H, W)."""
        return self.detector.inference(images)


def whole(model: nn.Module) -> nn.Module:
    """What is timed: a detector with its decoding, another model as it is."""
    return WholeDetector(model) if isinstance(model, Detector) else model


def compared(outputs: Any) -> dict[str, Tensor]:
    """The floating-point tensors of a model's outputs, by name; of a detector the raw ones."""
    return {
        name: value
        for name, value in name_outputs(outputs).items()
        if name not in _DETECTIONS and value.is_floating_point()
    }
