"""The run's table, ``metrics.csv``, and the same numbers for the loggers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from castling.train.module import TrainingModule
from castling.utils.files import write_csv


class History(Callback):
    """One row per epoch: epoch, step, train_…, val_…, lr, seconds; the file is rewritten each time.

    Losses are named by the task, accuracies are in percent; seconds count the training of this
    run, evaluation included,
    interruptions not.

    Args:
        path: the CSV file.
        log_steps: steps between two entries of loss and learning rate in the loggers.
    """

    def __init__(self, path: Path, log_steps: int) -> None:
        self.path, self.log_steps = path, log_steps
        self.rows: list[dict[str, Any]] = []
        self.seconds_before = 0.0
        self.logged_step = 0

    def on_fit_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Start the clock; write the rows of a resumed run, whatever became of the file."""
        self.started = time.perf_counter()
        if self.rows:
            self._write(trainer)

    @property
    def seconds(self) -> float:
        """Training time of the run so far."""
        return self.seconds_before + time.perf_counter() - self.started

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log every ``log_steps`` steps."""
        step = trainer.global_step
        if step % self.log_steps == 0 and step != self.logged_step:
            self.logged_step = step
            values = {f"train/{name}": float(loss) for name, loss in module.last_losses.items()}
            values["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
            _log(trainer, values)

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Write the epoch's row."""
        losses = {f"train_{name}": value for name, value in module.train_losses.items()}
        row: dict[str, Any] = {
            "epoch": trainer.current_epoch + 1,
            "step": trainer.global_step,
            **losses,
            **{f"val_{name}": value for name, value in module.metrics.items()},
            "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
            "seconds": round(self.seconds, 2),
        }
        values = {f"val/{name}": value for name, value in module.metrics.items()}
        values["train/epoch_loss"] = row["train_loss"]
        _log(trainer, values)
        module.metrics = {}  # do not repeat them for an epoch without evaluation
        self.rows.append(row)
        self._write(trainer)

    def _write(self, trainer: Trainer) -> None:
        if trainer.is_global_zero:
            names = dict.fromkeys(key for row in self.rows for key in row)
            parts = [name for name in names if name.startswith("train_")]
            metrics = [name for name in names if name.startswith("val_")]
            columns = ("epoch", "step", *parts, *metrics, "lr", "seconds")
            write_csv(self.path, columns, self.rows)

    def state_dict(self) -> dict[str, Any]:
        """The rows written so far, and the seconds."""
        return {"rows": self.rows, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the rows of the checkpoint; later ones are dropped."""
        self.rows, self.seconds_before = state_dict["rows"], state_dict["seconds"]


def _log(trainer: Trainer, values: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(values, step=trainer.global_step)
