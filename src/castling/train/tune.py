"""A learning rate and a batch size to begin with, found by Lightning's Tuner; changes nothing."""

from __future__ import annotations

import dataclasses
import math
import os
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.tuner import Tuner

from castling.data import Batch
from castling.data.errors import plain_data_errors
from castling.train.build import build, check, open_data, see_training_data
from castling.train.hardware import trainer_arguments
from castling.train.module import TrainingModule
from castling.train.recipe import Recipe
from castling.train.resolve import resolved
from castling.train.trainer import quiet_lightning
from castling.utils.files import replacing, write_csv
from castling.utils.randomness import seed_everything

#: The largest batch that is tried, as a power of two: on a GPU its memory decides; on a CPU nothing
#: would stop the search before the machine begins to swap.
_LARGEST = {"cpu": 8}
_LARGEST_ELSEWHERE = 13
#: A fall of the loss counts from so many standard errors on.
_CERTAIN = 3.0


@dataclasses.dataclass(frozen=True)
class LearningRateFound:
    """What a learning-rate search found.

    Attributes:
        suggestion: a value for ``optim.lr``, where the loss falls most steeply; None where it never
            falls.
        certain: whether it falls there by clearly more than it scatters from step to step.
        learning_rates: those tried, in the unit of ``optim.lr``.
        losses: after each, smoothed.
        files: of the curve: a CSV file and a picture.
    """

    suggestion: float | None
    certain: bool
    learning_rates: tuple[float, ...]
    losses: tuple[float, ...]
    files: tuple[str, ...]

    def __str__(self) -> str:
        """The suggestion and where the curve lies."""
        found = (
            "no learning rate at which the loss falls was found"
            if self.suggestion is None
            else f"suggested: --optim.lr {self.suggestion:.2g} (where the loss falls most steeply)"
        )
        if self.suggestion is not None and not self.certain:
            found += "\nuncertain: the loss scatters as much as it falls there"
        return f"{found}\ncurve: {', '.join(self.files)}"


@dataclasses.dataclass(frozen=True)
class BatchSizeFound:
    """What a batch-size search found.

    Attributes:
        batch_size: the largest power of two that worked.
        limited_by: what ended the search: ``"memory"``, ``"images"`` (there are no more), or
            ``"bound"`` (larger ones were not tried).
    """

    batch_size: int
    limited_by: str

    def __str__(self) -> str:
        """The size, and why not more."""
        reason = {
            "memory": "twice as many do not fit into the memory",
            "images": "there are not more training images",
            "bound": "larger ones were not tried",
        }[self.limited_by]
        return f"largest batch that works: --data.loader.batch_size {self.batch_size} ({reason})"


class _Probe(TrainingModule):
    """Training whose learning rate and batch size Lightning sets."""

    show_progress = True

    def setup(self, stage: str) -> None:
        """Begin the list of losses, one of each step."""
        super().setup(stage)
        self.losses: list[float] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        """Loss of one batch."""
        loss = super().training_step(batch, batch_idx)
        self.losses.append(float(loss.detach()))
        return loss

    def on_train_start(self) -> None:
        """Leave out the search's progress bar where none is wanted: it has no option for that."""
        super().on_train_start()
        for callback in [] if self.show_progress else getattr(self.trainer, "callbacks", []):
            if hasattr(callback, "progress_bar_refresh_rate"):
                callback.progress_bar_refresh_rate = 0

    @property
    def batch_size(self) -> int:
        """Images per batch; Lightning's search sets it."""
        return self.data.config.loader.batch_size

    @batch_size.setter
    def batch_size(self, value: int) -> None:
        config = self.data.config
        self.data.config = dataclasses.replace(
            config, loader=dataclasses.replace(config.loader, batch_size=value)
        )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step; the rate is the search's, scaled by layer as in training."""
        seed_everything(self.recipe.seed, self.global_step, batch_idx, self.trainer.global_rank)
        for config in self.trainer.lr_scheduler_configs:
            rate = config.scheduler.get_last_lr()[0]
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = rate * group["lr_scale"]


def find_learning_rate(
    recipe: Recipe,
    run_dir: str | os.PathLike[str],
    steps: int = 100,
    *,
    progress: bool = True,
) -> LearningRateFound:
    """Train a few steps with a learning rate that rises from 1e-7 to 1, and look at the loss.

    Writes ``learning-rate.csv`` and ``learning-rate.png`` to ``run_dir``, and nothing else.

    Args:
        recipe: what to train; its ``optim.lr`` and schedule are not looked at.
        run_dir: folder of the two files; made if missing.
        steps: optimiser steps, fewer where the loss diverges before.
        progress: show Lightning's progress bar on standard error.

    Raises:
        ValueError: and others, as :func:`castling.train.train` raises them.
    """
    with quiet_lightning(), plain_data_errors(), tempfile.TemporaryDirectory() as folder:
        module, trainer = _prepare(recipe, folder)
        module.show_progress = progress
        finder = Tuner(trainer).lr_find(
            module, min_lr=1e-7, max_lr=1.0, num_training=steps, update_attr=False
        )
        assert finder is not None
        tried = [float(rate) for rate in finder.results["lr"]]
        suggestion, certain = steepest_fall(tried, module.losses)
        # The recipe's rate is meant for lr_batch images a step, these were so many.
        per_step = recipe.data.loader.batch_size
        scale = recipe.optim.lr_batch / per_step if recipe.optim.lr_batch else 1.0
        rates = [rate * scale for rate in tried]
        losses = [float(loss) for loss in finder.results["loss"]]
        rows = [
            {"learning_rate": rate, "loss": loss} for rate, loss in zip(rates, losses, strict=False)
        ]
        table = Path(run_dir) / "learning-rate.csv"
        write_csv(table, ("learning_rate", "loss"), rows)
        picture = table.with_suffix(".png")
        found = None if suggestion is None else suggestion * scale
        _plot(rows, found, picture)
        return LearningRateFound(
            found, certain, tuple(rates), tuple(losses), (str(table), str(picture))
        )


def steepest_fall(rates: Sequence[float], losses: Sequence[float]) -> tuple[float | None, bool]:
    """The rate around which the losses fall most, and whether by clearly more than they scatter.

    Compared are the means of a tenth of the steps before and after each rate: rates rise evenly on
    a logarithmic axis, and the losses of some tasks scatter from batch to batch. (Lightning's
    suggestion is the slope by the rate itself, largest in the scatter at the smallest rates.)

    Args:
        rates: rising.
        losses: at each, not smoothed.
    """
    count = min(len(rates), len(losses))
    window = max(3, count // 10)
    largest, found, certain = 0.0, None, False
    for place in range(window, count - window + 1):
        before, after = losses[place - window : place], losses[place : place + window]
        fall = statistics.fmean(before) - statistics.fmean(after)
        if fall > largest:
            spread = math.sqrt((statistics.variance(before) + statistics.variance(after)) / window)
            largest, found, certain = fall, rates[place], fall > _CERTAIN * spread
    return found, certain


def find_batch_size(recipe: Recipe) -> BatchSizeFound:
    """Double the batch until it does not fit into the memory; on a CPU up to 256 images.

    Every batch that is tried has the largest size that training may draw.

    Args:
        recipe: what to train; its ``data.loader.batch_size`` is not looked at.

    Raises:
        ValueError: and others, as :func:`castling.train.train` raises them.
    """
    with quiet_lightning(), plain_data_errors(), tempfile.TemporaryDirectory() as folder:
        module, trainer = _prepare(recipe, folder, largest=True)
        module.batch_size = 2  # the search does not begin above the number of images
        power = _LARGEST.get(trainer.strategy.root_device.type, _LARGEST_ELSEWHERE)
        size = Tuner(trainer).scale_batch_size(
            module,
            mode="power",
            steps_per_trial=3,
            init_val=2,
            max_trials=power,
            max_val=2 ** (power + 1),
        )
        assert size is not None
        images = module.data.sizes["train"]
        if size >= images:
            return BatchSizeFound(images, "images")
        return BatchSizeFound(size, "bound" if size >= 2**power else "memory")


def _prepare(recipe: Recipe, folder: str, *, largest: bool = False) -> tuple[_Probe, pl.Trainer]:
    """The recipe's training without anything that writes, perhaps at the largest size alone."""
    recipe = resolved(recipe)
    check(recipe)
    if largest:
        transform = recipe.data.transform.at_largest()
        recipe = dataclasses.replace(
            recipe, data=dataclasses.replace(recipe.data, transform=transform)
        )
    seed_everything(recipe.seed)
    data, task = open_data(recipe)
    model, _, _ = build(recipe, task)
    see_training_data(task, data)
    if recipe.hardware.channels_last:
        model.to(memory_format=torch.channels_last)
    # One process finds out what each of several can do. Lightning's search for a learning rate
    # counts batches, not steps.
    alone = dataclasses.replace(recipe.hardware, devices=1, nodes=1, strategy="auto", accumulate=1)
    trainer = pl.Trainer(
        **trainer_arguments(alone, model),
        max_epochs=10**6,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        logger=False,
        default_root_dir=folder,
    )
    return _Probe(model, task, recipe, data), trainer


def _plot(rows: list[dict[str, float]], suggestion: float | None, path: Path) -> None:
    # Matplotlib takes a second to import. The object interface opens no window anywhere.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot([row["learning_rate"] for row in rows], [row["loss"] for row in rows])
    if suggestion is not None:
        axes.axvline(suggestion, color="tab:red", label=f"suggested: {suggestion:.2g}")
        axes.legend()
    axes.set(xscale="log", xlabel="optim.lr", ylabel="training loss, smoothed")
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
