"""The Lightning module: hands a task's loss to the optimiser and its metrics to the callbacks."""

from __future__ import annotations

import dataclasses
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from castling.attention.auxiliary import auxiliaries, auxiliary_penalty
from castling.data import Batch, BatchLoader, DataModule
from castling.tasks import Step, Task
from castling.train.optimization import build_optimizer, clip_gradients, set_learning_rate
from castling.train.recipe import Recipe
from castling.utils.randomness import seed_everything


class TrainingModule(pl.LightningModule):
    """Trains ``model`` for ``task`` as ``recipe`` says.

    Callbacks read these attributes: ``evaluated`` (the network that validation uses; the moving
    average puts itself here), ``metrics`` (results of the last validation), ``train_losses`` (means
    of the epoch so far), ``progress`` (share of all steps done, 0 to 1).

    Args:
        model: the network.
        task: loss and metrics.
        recipe: everything else.
        data: the images.
        start: (epoch, batch) at which a resumed run goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        recipe: Recipe,
        data: DataModule,
        start: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        #: Of the record of which images train; kept in checkpoints.
        self.split_digest = ""
        self.model = model
        self.task, self.recipe, self.data = task, recipe, data
        self.start = start
        self.metrics: dict[str, float] = {}
        self.last_losses: dict[str, Tensor] = {}
        self.loss_sums: dict[str, Tensor] = {}
        self.loss_count = 0
        self.has_penalty = any(branch.config.penalty > 0 for branch in auxiliaries(model).values())
        # Lists hide these from state_dict and DDP.
        self.evaluated_holder: list[nn.Module] = []
        self.metric_holder: list[Any] = []

    def train_dataloader(self) -> BatchLoader:
        """Shuffled batches of this process, from where the run stands."""
        return self._loader("train", training=True, start=self.start)

    def val_dataloader(self) -> BatchLoader:
        """This process's share of the validation images."""
        return self._loader("val")

    def _loader(self, split: str, **options: Any) -> BatchLoader:
        trainer = self.trainer
        return self.data.loader(
            split,
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            pin_memory=torch.cuda.is_available(),
            **options,
        )

    @property
    def progress(self) -> float:
        """Share of all steps done, 0 to 1."""
        return min(1.0, self.global_step / self.total)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The optimiser; its learning rate is set at each step by :meth:`on_train_batch_start`."""
        per_step = (
            self.recipe.data.loader.batch_size
            * self.recipe.hardware.accumulate
            * self.trainer.world_size
        )
        return build_optimizer(self.model, self.recipe.optim, per_step, [*self.task.parameters()])

    def setup(self, stage: str) -> None:
        """Fix the length of the run."""
        self.per_epoch = steps_per_epoch(self.recipe, self.data, self.trainer.world_size)
        total = self.per_epoch * self.recipe.epochs
        self.total = min(total, self.recipe.max_steps or total)
        schedule = self.recipe.schedule
        self.warmup = schedule.warmup_steps or round(schedule.warmup_epochs * self.per_epoch)

    def on_fit_start(self) -> None:
        """Bring to the device what the task hides from Lightning, such as a teacher."""
        self.task.to(self.device)

    def on_train_start(self) -> None:
        """Freeze here too: Lightning does not start an epoch that is resumed in its middle."""
        self._freeze_batchnorm()

    def on_train_epoch_start(self) -> None:
        """Point the loader at this epoch; a resumed epoch goes on in its middle."""
        epoch = self.trainer.current_epoch
        if epoch != self.start[0]:
            self.trainer.train_dataloader.sampler.set_epoch(epoch)
        if epoch != self.start[0] or self.start[1] == 0:
            self.loss_sums, self.loss_count = {}, 0
        self._freeze_batchnorm()

    def _freeze_batchnorm(self) -> None:
        if self.recipe.regularize.freeze_batchnorm:
            for layer in self.model.modules():
                if isinstance(layer, nn.modules.batchnorm._BatchNorm):
                    layer.eval()

    def transfer_batch_to_device(
        self, batch: Batch, device: torch.device, dataloader_idx: int
    ) -> Batch:
        """Move a batch, in channels-last memory layout where the recipe wants it so."""
        batch = batch.to(device, non_blocking=True)
        if not self.recipe.hardware.channels_last:
            return batch
        images = batch.images.contiguous(memory_format=torch.channels_last)
        return dataclasses.replace(batch, images=images)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed this step and set its learning rate: both follow from the step alone."""
        seed_everything(self.recipe.seed, self.global_step, batch_idx, self.trainer.global_rank)
        set_learning_rate(
            self.trainer.optimizers[0],
            self.recipe.schedule,
            self.global_step,
            self.total,
            self.warmup,
            self.per_epoch,
        )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch."""
        trainer = self.trainer
        step = Step(
            seed=self.recipe.seed,
            epoch=trainer.current_epoch,
            batch=batch_idx,
            rank=trainer.global_rank,
            progress=self.progress,
            averaged=self.evaluated_holder[0] if self.evaluated_holder else None,
        )
        try:
            losses = self.task.training_step(self.model, batch, step)
        except ValueError as error:
            if "more than 1 value per channel" not in str(error):
                raise
            raise ValueError(
                f"BatchNorm cannot learn from a batch of one image with a map of one pixel ({error}"
                "): raise data.loader.batch_size or data.transform.image_size"
            ) from error
        if self.has_penalty:
            losses["penalty"] = auxiliary_penalty(self.model)
            losses["loss"] = losses["loss"] + losses["penalty"]
        self.last_losses = {name: value.detach() for name, value in losses.items()}
        for name, value in self.last_losses.items():
            total = self.loss_sums.get(name)
            self.loss_sums[name] = value if total is None else total + value
        self.loss_count += 1
        return losses["loss"]

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip as the recipe says."""
        clip_gradients([p for p in self.parameters() if p.requires_grad], self.recipe.clip)

    @property
    def train_losses(self) -> dict[str, float]:
        """Means of the epoch so far, ``"loss"`` first; NaN before its first batch."""
        if not self.loss_sums:
            return {"loss": float("nan")}
        return {name: float(total) / self.loss_count for name, total in self.loss_sums.items()}

    @property
    def evaluated(self) -> nn.Module:
        """The network that validation uses and that is saved."""
        return self.evaluated_holder[0] if self.evaluated_holder else self.model

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self.evaluated.eval()
        self.metric_holder[:] = [self.task.metrics().to(self.device)]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Take one batch into the metric."""
        self.task.evaluation_step(self.evaluated, batch, self.metric_holder[0])

    def on_validation_epoch_end(self) -> None:
        """Compute the metric; it synchronises the processes by itself."""
        self.metrics = self.metric_holder[0].compute()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the running means of the losses, and where the run stands."""
        checkpoint["castling"] = {
            "loss_sums": self.loss_sums,
            "loss_count": self.loss_count,
            "metrics": self.metrics,
            "split": self.split_digest,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the running means over."""
        state = checkpoint["castling"]
        if "loss_sum" in state:  # written before losses had named parts
            old = state["loss_sum"]
            state = state | {"loss_sums": {} if old is None else {"loss": old}}
        self.loss_count, self.metrics = state["loss_count"], state["metrics"]
        self.loss_sums = {
            name: torch.as_tensor(value) for name, value in state["loss_sums"].items()
        }


def steps_per_epoch(recipe: Recipe, data: DataModule, world_size: int) -> int:
    """Optimiser steps of an epoch on ``world_size`` processes."""
    return -(-data.batches_per_epoch(world_size) // recipe.hardware.accumulate)
