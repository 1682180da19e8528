"""Exponential moving average of the weights."""

from __future__ import annotations

import math
from typing import Any

from lightning.pytorch import Callback, Trainer
from timm.utils import ModelEmaV3

from castling.train.module import TrainingModule
from castling.train.optim_config import EmaConfig


class WeightAverage(Callback):
    """Maintains the average and makes it the evaluated network.

    Args:
        config: decay and warm-up.
    """

    def __init__(self, config: EmaConfig) -> None:
        self.config = config
        self.average: ModelEmaV3 | None = None
        self.restored: dict[str, Any] | None = None
        self.updated_step = 0

    def decay(self, step: int) -> float:
        """Share of the old average kept at ``step`` (1 is the first)."""
        if not self.config.warmup:
            return self.config.decay
        if self.config.rise == "ratio":
            return min(self.config.decay, (1 + step) / (self.config.warmup + step))
        return self.config.decay * (1 - math.exp(-step / self.config.warmup))

    def on_fit_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Copy the model, or take the average from the checkpoint."""
        self.average = ModelEmaV3(module.model, decay=self.config.decay)
        self.average.module.requires_grad_(False)
        if self.restored is not None:
            self.average.module.load_state_dict(self.restored)
            self.restored = None
        module.evaluated_holder[:] = [self.average.module]

    def on_train_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """The checkpoint's average holds the resumed step already."""
        self.updated_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Update after every optimiser step."""
        if trainer.global_step == self.updated_step:
            return
        self.updated_step = trainer.global_step
        assert self.average is not None
        self.average.decay = self.decay(trainer.global_step)
        self.average.update(module.model)

    def state_dict(self) -> dict[str, Any]:
        """The averaged weights."""
        return {} if self.average is None else {"average": self.average.module.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the averaged weights until training starts."""
        self.restored = state_dict.get("average")
