"""The mean loss of the images."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Mean over images; sums are added up over processes by torchmetrics."""

    full_state_update = False
    total: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total", torch.zeros((), dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, losses: Tensor) -> None:
        """Take in the losses (B,) of some images."""
        self.total += losses.double().sum()
        self.images += len(losses)

    def compute(self) -> dict[str, float]:
        """``loss``; empty without images."""
        count = int(self.images)
        return {"loss": float(self.total) / count} if count else {}
