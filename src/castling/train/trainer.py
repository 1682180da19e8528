"""``train``: run a recipe and write a folder with the trained, switched, evaluated model."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn

from castling.data.errors import plain_data_errors
from castling.surgery import has_idle_biases
from castling.tasks.result import TrainResult
from castling.train.build import build, check, check_forward, open_data
from castling.train.callbacks import (
    AuxiliarySchedule,
    BatchNormStatistics,
    Checkpoints,
    DropPathRamp,
    History,
    Progress,
    StopOnNonFiniteLoss,
    WeightAverage,
)
from castling.train.finish import finish
from castling.train.module import TrainingModule
from castling.train.recipe import Recipe
from castling.train.recorded_split import (
    ChangedData,
    check_changes,
    in_rules_of_run,
    recorded_split,
    write_split,
)
from castling.train.run_folder import (
    Resume,
    checkpoint_path,
    find_run,
    holds_run,
    make_run,
    read_checkpoint,
)
from castling.utils.randomness import seed_everything

_log = logging.getLogger(__name__)
_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def train(
    recipe: Recipe,
    run_dir: str | os.PathLike[str],
    resume: Resume = "auto",
    progress: bool = True,
    callbacks: Sequence[pl.Callback] = (),
    changed_data: ChangedData = "refuse",
) -> TrainResult:
    """Train, evaluate, switch where there is something to switch, and evaluate again.

    Writes to ``run_dir``: recipe.yaml, split.json, metrics.csv, auxiliary.csv (models with
    auxiliary branches), tensorboard/, checkpoints/last.ckpt, model.safetensors and model.json,
    switched/ with the same two and certificate.json, result.json.

    Args:
        recipe: everything that decides how it goes.
        run_dir: the run's folder; made if missing.
        resume: "auto" goes on where a run of the same recipe stopped, and returns the result of one
            that is finished; "must" insists on something to resume; "never" starts anew.
        progress: show what is trained on what, and a live display, on standard error.
        callbacks: further Lightning callbacks; they run before a step is logged and saved.
        changed_data: whether a run may go on where images that it trained on are gone or changed:
            "refuse", or "allow", which also takes in new images.

    Returns:
        Results before and after the switch, and where the models lie.

    Raises:
        FileExistsError: the folder holds another recipe's run; the message lists the differences.
        FileNotFoundError: "must" without a checkpoint, or images or weights that do not exist.
        ValueError: something in the recipe does not fit together; raised before training starts.
        DataError: an image is damaged.
        NonFiniteLossError: the loss became NaN or infinite; the message says what to try.
        TrainingInterrupted: Ctrl-C; the message says how to go on.
    """
    run_dir = Path(run_dir)
    with _quiet_lightning(), plain_data_errors():
        if resume != "never" and holds_run(run_dir):
            recipe = in_rules_of_run(recipe, run_dir)
        finished, checkpoint = find_run(recipe, run_dir, resume)
        if finished is not None:
            return finished
        check(recipe)
        seed_everything(recipe.seed)
        start, record = (0, 0), None
        if checkpoint is not None:
            state = read_checkpoint(checkpoint)
            start, record = _position(state), recorded_split(run_dir, state, changed_data)
        data, task = open_data(recipe, record, take_in=changed_data == "allow")
        check_changes(data, record, changed_data)
        model, card = build(recipe, task)
        if checkpoint is None:
            check_forward(model, task, data)
        if recipe.hardware.channels_last:
            model.to(memory_format=torch.channels_last)
        if recipe.hardware.compile:
            model.compile()
        module = TrainingModule(model, task, recipe, data, start)
        checkpoints = Checkpoints(checkpoint_path(run_dir).parent, recipe.save)
        trainer = _trainer(recipe, model, run_dir, progress, checkpoints, callbacks)
        if trainer.is_global_zero:
            make_run(recipe, run_dir, resume)
            resumed = checkpoint is not None
            module.split_digest = write_split(data, run_dir, record, resumed, changed_data)
        with checkpoints.listening(trainer):
            trainer.fit(
                module, ckpt_path=None if checkpoint is None else str(checkpoint), weights_only=True
            )
        if not trainer.is_global_zero:
            return TrainResult(run_dir=str(run_dir), metrics={})
        return finish(module, card, run_dir, trainer)


def _trainer(
    recipe: Recipe,
    model: nn.Module,
    run_dir: Path,
    progress: bool,
    checkpoints: Checkpoints,
    further: Sequence[pl.Callback],
) -> pl.Trainer:
    hardware, save = recipe.hardware, recipe.save
    accelerator = hardware.accelerator
    if accelerator == "auto":
        accelerator = "gpu" if torch.cuda.is_available() else "cpu"
    precision = hardware.precision
    if accelerator == "cpu" and precision != "32":
        _log.warning("hardware.precision %s is meant for a GPU; this CPU computes in 32", precision)
        precision = "32"
    devices: Any = hardware.devices or (-1 if accelerator == "gpu" else 1)
    callbacks: list[pl.Callback] = [StopOnNonFiniteLoss(save.log_steps)]
    if recipe.ema.decay:
        callbacks.append(WeightAverage(recipe.ema))
    callbacks.append(AuxiliarySchedule(run_dir / "auxiliary.csv"))
    if recipe.regularize.drop_path_ramp:
        callbacks.append(DropPathRamp())
    if recipe.regularize.batchnorm_images:
        callbacks.append(BatchNormStatistics(recipe.regularize.batchnorm_images))
    callbacks += further
    if progress:
        callbacks.append(Progress(run_dir))
    callbacks.append(History(run_dir / "metrics.csv", save.log_steps))
    callbacks.append(checkpoints)
    return pl.Trainer(
        accelerator=accelerator,
        devices=devices,
        num_nodes=hardware.nodes,
        strategy=_strategy(hardware.strategy, model, devices != 1 or hardware.nodes > 1),
        precision=_PRECISIONS[precision],
        max_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        accumulate_grad_batches=hardware.accumulate,
        check_val_every_n_epoch=save.validate_epochs,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=save.log_steps,
        logger=TensorBoardLogger(str(run_dir), name="", version="tensorboard"),
        callbacks=callbacks,
    )


def _strategy(strategy: str, model: nn.Module, several: bool) -> str:
    """The strategy, with ``find_unused_parameters`` where some get no gradient.

    Only the auxiliary branch reads a host's score biases, so they get no gradient once it has
    closed; DistributedDataParallel would wait for them or raise.
    """
    plain = {"auto": "ddp", "ddp": "ddp", "ddp_spawn": "ddp_spawn"}
    if several and strategy in plain and has_idle_biases(model):
        return f"{plain[strategy]}_find_unused_parameters_true"
    return strategy


def _position(checkpoint: dict[str, Any]) -> tuple[int, int]:
    for name, state in checkpoint["callbacks"].items():
        if name.startswith(Checkpoints.__qualname__):
            epoch, batch = state["position"]
            return epoch, batch
    raise ValueError("the checkpoint was not written by castling")


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence Lightning's tips and warnings; errors are raised as exceptions."""
    loggers = [
        logging.getLogger(name)
        for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities")
    ]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning.*")
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
