"""Checkpoints to resume from, and a graceful stop on Ctrl-C."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from castling.train.module import TrainingModule
from castling.train.recipe import SaveConfig
from castling.utils.files import replacing


class TrainingInterrupted(RuntimeError):  # noqa: N818 an event, not an error
    """Training was ended on request; the message says how to go on."""

    exit_code = 130  # of a process that Ctrl-C ended


class Checkpoints(Callback):
    """Writes ``last.ckpt`` atomically; must be the last callback, so that it saves final states.

    Ctrl-C in a single process saves after the current step. Several processes would not stop at
    the same step, so there the run resumes from its last regular checkpoint.

    Args:
        folder: where checkpoints go.
        config: how often.
    """

    def __init__(self, folder: Path, config: SaveConfig) -> None:
        self.folder, self.config = folder, config
        self.position = (0, 0)
        self.saved_step = 0
        self.interrupted = False

    @property
    def path(self) -> Path:
        """The checkpoint that a run resumes from."""
        return self.folder / "last.ckpt"

    @contextmanager
    def listening(self, trainer: Trainer) -> Iterator[None]:
        """Within the context, Ctrl-C stops after the current step; a second one stops at once."""
        listens = threading.current_thread() is threading.main_thread() and trainer.world_size == 1

        def on_interrupt(signum: int, frame: Any) -> None:
            self.interrupted = True
            signal.signal(signal.SIGINT, signal.default_int_handler)

        previous = signal.signal(signal.SIGINT, on_interrupt) if listens else None
        try:
            yield
        except SystemExit as error:
            if not isinstance(error.__context__, KeyboardInterrupt):  # Lightning turns it into this
                raise
            resumed = "from the last checkpoint" if self.path.is_file() else "from the beginning"
            raise TrainingInterrupted(
                f"stopped at once without saving; the same command goes on {resumed}."
            ) from error
        finally:
            if listens:
                signal.signal(signal.SIGINT, previous)

    def on_train_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Do not save a resumed step again."""
        self.saved_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch, after whole optimiser steps; the epoch's end saves by itself."""
        step = trainer.global_step
        if step == self.saved_step or batch_idx + 1 >= trainer.num_training_batches:
            return
        due = self.config.every_steps and step % self.config.every_steps == 0
        if due or self.interrupted:
            self.position = (trainer.current_epoch, batch_idx + 1)
            self._save(trainer)
        self._stop_if_interrupted(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Save after an epoch."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or module.progress >= 1.0
        if epoch % self.config.every_epochs == 0 or last or self.interrupted:
            self.position = (epoch, 0)
            self._save(trainer)
        if not last:
            self._stop_if_interrupted(trainer)

    def _save(self, trainer: Trainer) -> None:
        self.saved_step = trainer.global_step
        if not trainer.is_global_zero:  # every process takes part in gathering what is saved
            trainer.save_checkpoint(self.path)
            return
        with replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary)

    def _stop_if_interrupted(self, trainer: Trainer) -> None:
        if self.interrupted:
            raise TrainingInterrupted(
                f"stopped in epoch {trainer.current_epoch + 1} after step {trainer.global_step}; "
                f"saved to {self.path}. Run the same command again to go on from there."
            )

    def state_dict(self) -> dict[str, Any]:
        """The next (epoch, batch)."""
        return {"position": list(self.position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the position is read before the trainer starts."""
