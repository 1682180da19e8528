"""The Lightning module: hands a task's loss to the optimiser and its metric to the callbacks."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from castling.attention.auxiliary import auxiliaries, auxiliary_penalty
from castling.data import ImageData
from castling.tasks import Task
from castling.train.loading import (
    ResumableBatches,
    TrainLoader,
    batches_per_epoch,
    data_config,
    evaluation_loaders,
    seed_everything,
    train_loader,
)
from castling.train.optimization import build_optimizer, clip_gradients, set_learning_rate
from castling.train.recipe import Recipe


class TrainingModule(pl.LightningModule):
    """Trains ``model`` for ``task`` as ``recipe`` says.

    Callbacks read these attributes: ``evaluated`` (the network that validation uses; the moving
    average puts itself here), ``metrics`` (results of the last validation), ``train_loss`` (mean of
    the epoch so far), ``progress`` (share of all steps done, 0 to 1).

    Args:
        model: the network.
        task: loss and metric.
        recipe: everything else.
        data: the images.
        start: (epoch, batch) at which a resumed run goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        data: ImageData,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.model = model
        self.task, self.recipe, self.data = task, recipe, data
        self.start = start
        self.metrics: dict[str, float] = {}
        self.last_loss: Tensor | None = None
        self.loss_sum: Tensor | None = None
        self.loss_count = 0
        self.has_penalty = any(branch.config.penalty > 0 for branch in auxiliaries(model).values())
        self.evaluated_holder: list[nn.Module] = []  # a list hides it from state_dict and DDP

    def train_dataloader(self) -> TrainLoader:
        """Shuffled batches of this process, from where the run stands."""
        trainer = self.trainer
        return train_loader(
            data_config(self.recipe), self.data, self.start, trainer.global_rank, trainer.world_size
        )

    def val_dataloader(self) -> Any:
        """This process's share of the validation images."""
        trainer = self.trainer
        config = data_config(self.recipe)
        return evaluation_loaders(config, self.data, trainer.global_rank, trainer.world_size)["val"]

    @property
    def data_sizes(self) -> dict[str, int]:
        """Number of images of each split; without "test" where the test images are those of val."""
        data = self.data
        sizes = {"train": len(data.train), "val": len(data.val)}
        return sizes if data.test is data.val else sizes | {"test": len(data.test)}

    @property
    def progress(self) -> float:
        """Share of all steps done, 0 to 1."""
        return min(1.0, self.global_step / self.total)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser; its learning rate is set at each step by :meth:`on_train_batch_start`."""
        per_step = (
            self.recipe.data.batch_size * self.recipe.hardware.accumulate * self.trainer.world_size
        )
        return build_optimizer(self.model, self.recipe.optim, per_step)

    def setup(self, stage: str) -> None:
        """Fix the length of the run."""
        per_epoch = steps_per_epoch(self.recipe, len(self.data.train), self.trainer.world_size)
        total = per_epoch * self.recipe.epochs
        self.total = min(total, self.recipe.max_steps or total)
        schedule = self.recipe.schedule
        self.warmup = schedule.warmup_steps or round(schedule.warmup_epochs * per_epoch)

    def on_fit_start(self) -> None:
        """Bring the teacher to the device."""
        self.task.to(self.device)

    def on_train_start(self) -> None:
        """Freeze here too: Lightning does not start an epoch that is resumed in its middle."""
        self._freeze_batchnorm()

    def on_train_epoch_start(self) -> None:
        """Point the loader at this epoch; a resumed epoch goes on in its middle."""
        epoch = self.trainer.current_epoch
        if epoch != self.start[0]:
            sampler = self.trainer.train_dataloader.sampler
            assert isinstance(sampler, ResumableBatches)
            sampler.set_epoch(epoch)
        if epoch != self.start[0] or self.start[1] == 0:
            self.loss_sum, self.loss_count = None, 0
        self._freeze_batchnorm()

    def _freeze_batchnorm(self) -> None:
        if self.recipe.regularize.freeze_batchnorm:
            for layer in self.model.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images in channels-last memory layout, where the recipe wants them so."""
        if not self.recipe.hardware.channels_last:
            return batch
        return [
            x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in batch
        ]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed this step and set its learning rate: both follow from the step alone."""
        seed_everything(self.recipe.seed, self.global_step, batch_idx, self.trainer.global_rank)
        set_learning_rate(
            self.trainer.optimizers[0],
            self.recipe.schedule,
            self.global_step,
            self.total,
            self.warmup,
        )

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        trainer = self.trainer
        batch = self.task.prepare(batch, trainer.current_epoch, batch_idx, trainer.global_rank)
        loss = self.task.loss(self.model, batch, self.averaged_teacher)
        if self.has_penalty:
            loss = loss + auxiliary_penalty(self.model)
        self.last_loss = loss.detach()
        self.loss_sum = self.last_loss if self.loss_sum is None else self.loss_sum + self.last_loss
        self.loss_count += 1
        return loss

    @property
    def averaged_teacher(self) -> nn.Module | None:
        """The moving average, where and when it takes part in the loss."""
        ema = self.recipe.ema
        late = ema.self_distill > 0 and self.progress >= ema.self_distill_start
        return self.evaluated if late else None

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the recipe says."""
        clip_gradients([p for p in self.model.parameters() if p.requires_grad], self.recipe.clip)

    @property
    def train_loss(self) -> float:
        """Mean loss of the epoch so far; NaN before its first batch."""
        if self.loss_sum is None:
            return float("nan")
        return float(self.loss_sum) / self.loss_count

    @property
    def evaluated(self) -> nn.Module:
        """The network that validation uses and that is saved."""
        return self.evaluated_holder[0] if self.evaluated_holder else self.model

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self.evaluated.eval()
        self.metric = self.task.new_metric()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Take one batch into the metric."""
        self.metric.update(self.task.evaluate(self.evaluated, batch), batch)

    def on_validation_epoch_end(self) -> None:
        """Add the metric up over the processes."""
        self.metric.merge(
            lambda x: self.trainer.strategy.reduce(x.to(self.device), reduce_op="sum")
        )
        self.metrics = self.metric.compute()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running mean of the loss, and where the run stands."""
        checkpoint["castling"] = {
            "loss_sum": self.loss_sum,
            "loss_count": self.loss_count,
            "metrics": self.metrics,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the running mean over."""
        state = checkpoint["castling"]
        self.loss_sum, self.loss_count = state["loss_sum"], state["loss_count"]
        if self.loss_sum is not None:
            self.loss_sum = torch.as_tensor(self.loss_sum)
        self.metrics = state["metrics"]


def steps_per_epoch(recipe: Recipe, images: int, world: int) -> int:
    """Optimiser steps of an epoch of ``images`` training images on ``world`` processes."""
    return -(-batches_per_epoch(recipe.data, images, world) // recipe.hardware.accumulate)
