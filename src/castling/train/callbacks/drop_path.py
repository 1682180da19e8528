"""Stochastic depth that increases during training (EfficientViT, QT-ViT)."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from timm.layers import DropPath

from castling.train.module import TrainingModule


class DropPathRamp(Callback):
    """Sets each layer's rate to its final rate times the training progress."""

    def on_fit_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Store the final rates."""
        self.layers = [m for m in module.model.modules() if isinstance(m, DropPath)]
        self.rates = [layer.drop_prob for layer in self.layers]

    def on_train_batch_start(
        self, trainer: Trainer, module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the rates of this step."""
        for layer, rate in zip(self.layers, self.rates, strict=True):
            layer.drop_prob = rate * module.progress

    def on_fit_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Restore the final rates."""
        for layer, rate in zip(self.layers, self.rates, strict=True):
            layer.drop_prob = rate
