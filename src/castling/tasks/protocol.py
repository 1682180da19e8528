"""What a task must offer; classification, detection and segmentation all fit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from torch import Tensor, nn


class Metric(Protocol):
    """Accumulates over the batches of one evaluation."""

    def update(self, output: Any, batch: Any) -> None:
        """Take in the model's evaluation output for one batch."""

    def merge(self, total: Callable[[Tensor], Tensor]) -> None:
        """Replace each accumulated sum by its total over all processes."""

    def compute(self) -> dict[str, float]:
        """Named results, e.g. ``{"loss": 0.31, "top1": 91.2}``; empty when nothing was seen."""


class Task(Protocol):
    """Model + loss + metric, without an opinion on the loop around them.

    Attributes:
        headline: the key of ``Metric.compute`` that sums a run up, such as ``"top1"``.
    """

    headline: str

    def prepare(self, batch: Any, epoch: int, batch_index: int, rank: int) -> Any:
        """Augment a whole batch on the device; random only through the three numbers."""

    def loss(self, model: nn.Module, batch: Any, averaged: nn.Module | None = None) -> Tensor:
        """The 0-dimensional training loss of a prepared batch; runs the forward pass.

        ``averaged`` is the moving average of the model once it takes part in the loss.
        """

    def evaluate(self, model: nn.Module, batch: Any) -> Any:
        """The model's output for a batch of evaluation, as ``Metric.update`` takes it."""

    def new_metric(self) -> Metric:
        """An empty metric."""

    def images(self, batch: Any) -> Tensor:
        """The images (B, 3, H, W) of a batch, for calibration and statistics."""

    def to(self, device: Any) -> Any:
        """Move what the task holds itself, such as a teacher."""
