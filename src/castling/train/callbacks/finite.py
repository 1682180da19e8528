"""Stops a run whose loss is NaN or infinite."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor

from castling.train.module import TrainingModule


class NonFiniteLossError(RuntimeError):
    """The training loss became NaN or infinite."""


class StopOnNonFiniteLoss(Callback):
    """Checks every loss on a CPU, and every n-th on a GPU, where each check synchronises.

    The epoch's running sum is checked, so a non-finite loss between two checks is found too.

    Args:
        every: n, in steps.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_before_backward(self, trainer: Trainer, module: TrainingModule, loss: Tensor) -> None:
        """Raise NonFiniteLossError; on a CPU before the step that would spoil the weights."""
        if loss.device.type != "cpu" and trainer.global_step % self.every:
            return
        total = module.loss_sums.get("loss")
        if total is None or bool(torch.isfinite(total)):
            return
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        exact = "at" if loss.device.type == "cpu" else "at or shortly before"
        raise NonFiniteLossError(
            f"the training loss is {total.item()} {exact} step {trainer.global_step + 1} "
            f"(epoch {trainer.current_epoch + 1}, learning rate {rate:.3g}). "
            "Try a lower --optim.lr, a longer --schedule.warmup_epochs, --clip.mode norm, or "
            "--hardware.precision 32. The last checkpoint is from before."
        )
