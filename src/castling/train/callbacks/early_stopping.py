"""Training ends early once validation gets no better."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import nn

from castling.attention.auxiliary import auxiliaries
from castling.train.callbacks.best import headline
from castling.train.module import TrainingModule
from castling.train.recipe import EarlyStoppingConfig


def check_early_stopping(config: EarlyStoppingConfig, model: nn.Module) -> None:
    """Raise ValueError where no evaluation would ever count, because the masks stay open."""
    constant = any(b.config.schedule == "constant" for b in auxiliaries(model).values())
    if config.patience and constant:
        raise ValueError(
            "early_stopping.patience never ends a run whose auxiliary branches have the schedule "
            "constant, because they cannot be switched off at any time: leave early stopping out, "
            "or use the schedule ramp or gate"
        )


class EarlyStopping(Callback):
    """Stops after ``patience`` evaluations in a row that are not better than the best before.

    Counted are the evaluations that :func:`castling.train.callbacks.best.headline` counts.

    Args:
        config: patience and the least improvement.
    """

    def __init__(self, config: EarlyStoppingConfig) -> None:
        self.config = config
        self.best: float | None = None
        self.waited = 0

    @property
    def stopped(self) -> bool:
        """Whether training has been ended."""
        return self.waited >= self.config.patience

    def on_fit_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """A run that was stopped before does not go on."""
        trainer.should_stop = self.stopped

    def on_validation_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Compare, and stop where the patience has run out."""
        value = headline(module)
        if value is None:
            return
        sign = 1 if module.task.maximize else -1
        if self.best is None or sign * (value - self.best) > self.config.min_delta:
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        trainer.should_stop = self.stopped

    def state_dict(self) -> dict[str, Any]:
        """The best value, and how many evaluations were not better since."""
        return {"best": self.best, "waited": self.waited}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take both over."""
        self.best, self.waited = state_dict["best"], state_dict["waited"]
