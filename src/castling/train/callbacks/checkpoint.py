"""Checkpoints to resume from, and a graceful stop on Ctrl-C and SIGTERM."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies.launchers import _MultiProcessingLauncher
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from castling.train.callbacks.best import BestWeights
from castling.train.module import TrainingModule
from castling.train.recipe import SaveConfig
from castling.train.stopping import StopRequest, TrainingInterrupted
from castling.utils.files import replacing


class Checkpoints(Callback):
    """Writes ``last.ckpt`` atomically; must be the last callback, so that it saves final states.

    A request to stop is fulfilled after the current optimiser step, by all processes at the same.

    Args:
        path: of the checkpoint.
        config: how often.
        stop: what signals have asked for.
        best: the weights of the best evaluation, which a checkpoint refers to.
    """

    def __init__(
        self, path: Path, config: SaveConfig, stop: StopRequest, best: BestWeights | None = None
    ) -> None:
        self.path, self.config, self.stop, self.best = path, config, stop, best
        self.position = (0, 0)
        self.saved_step = 0

    @contextmanager
    def taking_part(self, trainer: Trainer) -> Iterator[None]:
        """Within the context, where the trainer fits, signals stop after the current step.

        Raises:
            TrainingInterrupted: it was stopped; in the first process alone.
        """
        launcher = trainer.strategy.launcher
        if isinstance(launcher, _MultiProcessingLauncher):  # other processes train, not this one
            self.stop.forward = launcher.kill
        try:
            yield
        except TrainingInterrupted as error:
            if trainer.is_global_zero:
                raise
            # Of the processes that the first one has started none may fail: it would be killed.
            environment = trainer.strategy.cluster_environment
            if not isinstance(environment, LightningEnvironment):
                raise SystemExit(error.exit_code) from error
        except (ProcessRaisedException, ProcessExitedException) as error:
            if not self.stop.signum:
                raise
            raise TrainingInterrupted(self._stopped(), self.stop.signum) from error
        finally:
            self.stop.training, self.stop.forward = False, None
        if self.stop.signum and trainer.is_global_zero:
            raise TrainingInterrupted(self._stopped("after the last step"), self.stop.signum)

    def on_train_start(self, trainer: Trainer, module: TrainingModule) -> None:
        """Do not save a resumed step again. Handle signals: Lightning has just begun to."""
        self.saved_step = trainer.global_step
        self.stop.training = True
        self.stop.handle()

    def on_train_batch_end(
        self, trainer: Trainer, module: TrainingModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save within an epoch, after whole optimiser steps; the epoch's end saves by itself."""
        whole = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        if not whole or batch_idx + 1 >= trainer.num_training_batches:
            return
        step = trainer.global_step
        due = self.config.every_steps and step % self.config.every_steps == 0
        stopping = self._stop_requested(trainer)
        if (due or stopping) and step != self.saved_step:
            self.position = (trainer.current_epoch, batch_idx + 1)
            self._save(trainer)
        if stopping:
            self._stop(trainer)

    def on_train_epoch_end(self, trainer: Trainer, module: TrainingModule) -> None:
        """Save after an epoch."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or module.progress >= 1.0
        stopping = self._stop_requested(trainer)
        if epoch % self.config.every_epochs == 0 or last or stopping:
            self.position = (epoch, 0)
            self._save(trainer)
        if stopping and not last:
            self._stop(trainer)

    def _save(self, trainer: Trainer) -> None:
        self.saved_step = trainer.global_step
        if not trainer.is_global_zero:  # every process takes part in gathering what is saved
            trainer.save_checkpoint(self.path)
            return
        with replacing(self.path) as temporary:
            trainer.save_checkpoint(temporary)
        if self.best is not None:
            self.best.checkpoint_saved()

    def _stop_requested(self, trainer: Trainer) -> bool:
        """Whether any process has been asked to stop; the same answer in all of them."""
        if trainer.world_size > 1:
            signum = torch.tensor(self.stop.signum, device=trainer.strategy.root_device)
            self.stop.signum = int(trainer.strategy.reduce(signum, reduce_op="max"))
        return bool(self.stop.signum)

    def _stop(self, trainer: Trainer) -> None:
        trainer.strategy.barrier()  # until the first process has written the file
        where = f"in epoch {trainer.current_epoch + 1} after step {trainer.global_step}"
        raise TrainingInterrupted(self._stopped(where), self.stop.signum)

    def _stopped(self, where: str = "") -> str:
        where = f" {where}" if where else ""
        return (
            f"stopped{where}; saved to {self.path}. Run the same command again to go on from there."
        )

    def state_dict(self) -> dict[str, Any]:
        """The next (epoch, batch)."""
        return {"position": list(self.position)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing: the position is read before the trainer starts."""
