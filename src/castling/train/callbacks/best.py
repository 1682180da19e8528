"""The weights of the best evaluation, kept while training goes on."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from torch import nn

from castling.attention.auxiliary import auxiliaries
from castling.models.saved import write_weights
from castling.train.module import TrainingModule

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Best:
    """An evaluation.

    Attributes:
        metric: the task's headline metric, such as ``"top1"``.
        value: of the metric, on the validation images.
        step: optimiser steps taken before it.
        epoch: finished epochs, the one it ended included.
    """

    metric: str
    value: float
    step: int
    epoch: int


def can_switch(model: nn.Module) -> bool:
    """Whether the masks of all auxiliary branches are empty, or there are none."""
    return all(branch.empty for branch in auxiliaries(model).values())


def headline(module: TrainingModule) -> float | None:
    """The headline metric of the last evaluation; None where it does not count.

    It counts where the switch is possible, if there will be one, and the metric is a finite number.
    """
    value = module.metrics.get(module.task.headline)
    if value is None or not math.isfinite(value):
        return None
    if module.task.switches and not can_switch(module.evaluated):
        return None
    return value


def weights_path(folder: Path, step: int) -> Path:
    """The file of the weights evaluated after ``step``."""
    return folder / f"best-{step}.safetensors"


class BestWeights(Callback):
    """Writes ``best-STEP.safetensors``, and removes what no checkpoint refers to any more.

    The step is in the name, so that a run that was killed and goes on from an earlier checkpoint
    finds the weights that this checkpoint means, whatever was written after it.

    Args:
        folder: where checkpoints lie.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best: Best | None = None
        self.saved: Best | None = None

    def on_validation_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Write the evaluated network's weights where none were better; ties go to the later."""
        value = headline(module)
        if value is None or (self.best is not None and self._better(module, value)):
            return
        self.best = Best(
            module.task.headline, value, trainer.global_step, trainer.current_epoch + 1
        )
        if trainer.is_global_zero:
            state = {name: value.cpu() for name, value in module.evaluated.state_dict().items()}
            write_weights(weights_path(self.folder, self.best.step), state)
            self._clean()

    def _better(self, module: TrainingModule, value: float) -> bool:
        """Whether the best so far is strictly better."""
        assert self.best is not None
        return self.best.value > value if module.task.maximize else self.best.value < value

    def checkpoint_saved(self) -> None:
        """A checkpoint that refers to the present best has taken the former's place."""
        self.saved = self.best
        self._clean()

    def _clean(self) -> None:
        kept = {weights_path(self.folder, each.step) for each in (self.best, self.saved) if each}
        for path in self.folder.glob("best-*.safetensors"):
            if path not in kept:
                path.unlink(missing_ok=True)

    def state_dict(self) -> dict[str, Any]:
        """The best evaluation so far."""
        return {} if self.best is None else asdict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from the best of the checkpoint; without its file there is none yet."""
        best = Best(**state_dict) if state_dict else None
        if best is not None and not weights_path(self.folder, best.step).is_file():
            _log.warning(
                "%s is missing: the best weights are chosen anew from here on",
                weights_path(self.folder, best.step),
            )
            best = None
        self.best = self.saved = best
