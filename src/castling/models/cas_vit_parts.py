"""The convolutional parts of a CAS-ViT block: local integration and MLP."""

from __future__ import annotations

from torch import Tensor, nn


class LocalIntegration(nn.Module):
    """1×1 · BN · depthwise 3×3 · GELU · 1×1 on (B, C, h, w).

    Args:
        dim: C.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(dim, dim, 1),
            nn.BatchNorm2d(dim),
            nn.Conv2d(dim, dim, 3, padding=1, groups=dim),
            nn.GELU(),
            nn.Conv2d(dim, dim, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.network(x)


class ConvMlp(nn.Module):
    """1×1 C→hidden · GELU · 1×1 hidden→C on (B, C, h, w).

    Args:
        dim: C.
        hidden: channels between.
        drop: dropout probability after each convolution.
    """

    def __init__(self, dim: int, hidden: int, drop: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(dim, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, dim, 1)
        self.drop = nn.Dropout(drop)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.drop(self.fc2(self.drop(self.act(self.fc1(x)))))
