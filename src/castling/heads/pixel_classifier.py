"""The last layer of heads that classify pixels."""

from __future__ import annotations

from torch import Tensor, nn

#: Standard deviation of the initial weights, as published: all classes start alike.
_STD = 0.01


class PixelClassifier(nn.Module):
    """Dropout of whole channels, then a 1×1 convolution to logits.

    Args:
        channels: of the map.
        num_classes: K.
        dropout: probability of leaving a channel out in training.
    """

    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout2d(dropout)
        self.conv = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.conv.weight, std=_STD)
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) → (B, K, h, w)."""
        logits: Tensor = self.conv(self.dropout(x))
        return logits
