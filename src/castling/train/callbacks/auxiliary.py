"""The mask schedule of the auxiliary branches, and statistics of what they contribute."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from castling.attention.auxiliary import (
    AuxiliaryStatistics,
    MaskedSoftmaxBranch,
    auxiliaries,
    collect_statistics,
)
from castling.train.module import TrainingModule
from castling.utils.files import write_csv

COLUMNS = ("step", "epoch", "layer", *(f.name for f in dataclasses.fields(AuxiliaryStatistics)))


class AuxiliarySchedule(Callback):
    """Sets the branches' progress before each step and each evaluation; writes ``auxiliary.csv``.

    Statistics are collected on the evaluated network, over the first batches of each evaluation.

    Args:
        path: the CSV file.
        batches: number of validation batches to collect over.
    """

    def __init__(self, path: Path, batches: int = 2) -> None:
        self.path, self.batches = path, batches
        self.rows: list[dict[str, Any]] = []
        self.branches: list[MaskedSoftmaxBranch] = []
        self.collecting = contextlib.ExitStack()
        self.statistics: dict[str, AuxiliaryStatistics] = {}

    def on_fit_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Find the branches of the model and of its moving average."""
        found = [*auxiliaries(module.model).values()]
        if module.evaluated is not module.model:
            found += auxiliaries(module.evaluated).values()
        self.branches = found
        self._set(module)
        if self.rows and trainer.is_global_zero:  # of a resumed run, whatever became of the file
            write_csv(self.path, COLUMNS, self.rows)

    def _set(self, module: TrainingModule) -> None:
        for branch in self.branches:
            branch.set_progress(module.progress)

    def on_train_batch_start(
        self, trainer: Trainer, module: TrainingModule, batch: Any, batch_idx: int
    ) -> None:
        """Advance the schedule."""
        self._set(module)

    def on_validation_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Evaluate at the progress reached; after the last step it is exactly 1."""
        self._set(module)
        if self.branches:
            self.statistics = self.collecting.enter_context(collect_statistics(module.evaluated))

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: TrainingModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Stop collecting after enough batches."""
        if batch_idx + 1 == self.batches:
            self.collecting.close()

    def on_validation_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Write the rows of this evaluation."""
        self.collecting.close()
        if not self.branches:
            return
        self.rows += [
            {
                "step": trainer.global_step,
                "epoch": trainer.current_epoch + 1,
                "layer": layer,
                **dataclasses.asdict(statistics),
            }
            for layer, statistics in self.statistics.items()
        ]
        self.statistics = {}
        if trainer.is_global_zero:
            write_csv(self.path, COLUMNS, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows written so far."""
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows of the checkpoint; later ones are dropped."""
        self.rows = state_dict["rows"]
