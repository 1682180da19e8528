"""``train``: run a recipe and write a folder with the trained, switched, evaluated model."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn

from castling.data import SplitRecord
from castling.data.errors import plain_data_errors
from castling.models.card import ModelCard
from castling.tasks.result import TrainResult
from castling.train.build import build, check, check_forward, open_data, see_training_data
from castling.train.callbacks import (
    AuxiliarySchedule,
    BatchNormStatistics,
    BestWeights,
    Checkpoints,
    DropPathRamp,
    EarlyStopping,
    History,
    Progress,
    StopOnNonFiniteLoss,
    WeightAverage,
)
from castling.train.callbacks.early_stopping import check_early_stopping
from castling.train.finish import finish
from castling.train.hardware import is_first_process, trainer_arguments, trains_on_cpu
from castling.train.loggers import make_loggers
from castling.train.module import TrainingModule
from castling.train.recipe import Recipe
from castling.train.recorded_split import (
    ChangedData,
    check_changes,
    in_rules_of_run,
    load_run_recipe,
    recorded_split,
    write_split,
)
from castling.train.resolve import resolved, with_normalisation_of, with_plan
from castling.train.run_folder import (
    Resume,
    checkpoint_path,
    find_run,
    holds_run,
    make_run,
    read_checkpoint,
)
from castling.train.run_lock import locked
from castling.train.stopping import StopRequest
from castling.utils.allocator import keep_freed_memory
from castling.utils.randomness import seed_everything
from castling.utils.shared import SharedSetting

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A run that has passed every check and can be trained.

    Attributes:
        module: model, task and data.
        card: of the model.
        trainer: Lightning's.
        checkpoints: writes checkpoints.
        checkpoint: what the run goes on from; None for a new one.
        record: the split that it began with, where it goes on.
    """

    module: TrainingModule
    card: ModelCard
    trainer: pl.Trainer
    checkpoints: Checkpoints
    checkpoint: Path | None
    record: SplitRecord | None


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
    auxiliary branches), what the loggers write, checkpoints/, model.safetensors and model.json,
    switched/ with the same two and certificate.json, best/ (or last/) with another saved model,
    result.json. While it trains there is train.lock.

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
        FileNotFoundError: "must" without a checkpoint, or images, weights or a plan that do not
            exist.
        ValueError: something in the recipe does not fit together; raised before training starts.
        DataError: an image is damaged.
        NonFiniteLossError: the loss became NaN or infinite; the message says what to try.
        RunLockedError: another process trains in the folder.
        TrainingInterrupted: Ctrl-C or SIGTERM; the message says how to go on.
    """
    run_dir = Path(run_dir)
    stop = StopRequest()
    with quiet_lightning(), plain_data_errors(), stop.listening():
        recipe = _of_run(recipe, run_dir, resume)
        finished, _ = find_run(recipe, run_dir, resume, warn=False)
        if finished is not None:
            return finished
        first = is_first_process(recipe.hardware)
        with locked(run_dir) if first else contextlib.nullcontext():
            found = prepare(
                recipe, run_dir, resume, progress, callbacks, stop, changed_data=changed_data
            )
            if isinstance(found, TrainResult):
                return found
            trainer = found.trainer
            if trainer.is_global_zero:
                make_run(recipe, run_dir, resume)
                found.module.split_digest = write_split(
                    found.module.data,
                    run_dir,
                    found.record,
                    found.checkpoint is not None,
                    changed_data,
                )
                for line in () if progress else found.module.data.changes.lines():
                    _log.warning("%s", line)  # the display, where there is one, has it
            with found.checkpoints.taking_part(trainer):
                trainer.fit(
                    found.module,
                    ckpt_path=None if found.checkpoint is None else str(found.checkpoint),
                    weights_only=True,
                )
            if not trainer.is_global_zero:
                return TrainResult(run_dir=str(run_dir), metrics={})
            return finish(found.module, found.card, run_dir, trainer)


def prepare(
    recipe: Recipe,
    run_dir: Path,
    resume: Resume = "auto",
    progress: bool = False,
    callbacks: Sequence[pl.Callback] = (),
    stop: StopRequest | None = None,
    *,
    changed_data: ChangedData = "refuse",
) -> Prepared | TrainResult:
    """Everything before the first step: all checks are made, and nothing is written.

    Arguments and errors are those of :func:`train`.

    Returns:
        The run, or the result of one that is finished.
    """
    recipe = _of_run(recipe, run_dir, resume)
    finished, checkpoint = find_run(recipe, run_dir, resume)
    if finished is not None:
        return finished
    check(recipe, resumed=checkpoint is not None)
    seed_everything(recipe.seed)
    start: tuple[int, int] = (0, 0)
    record = None
    if checkpoint is not None:
        state = read_checkpoint(checkpoint)
        start = _position(state, checkpoint)
        record = recorded_split(run_dir, state, changed_data)
    data, task = open_data(recipe, record, take_in=changed_data == "allow")
    check_changes(data, record, changed_data)
    model, card, weights = build(recipe, task, resumed=checkpoint is not None)
    see_training_data(task, data)
    check_early_stopping(recipe.early_stopping, model)
    if checkpoint is None:
        check_forward(model, task, data)
    if trains_on_cpu(recipe.hardware):
        keep_freed_memory()
    if recipe.hardware.channels_last:
        model.to(memory_format=torch.channels_last)
    if recipe.hardware.compile:
        model.compile()
    module = TrainingModule(model, task, recipe, data, start)
    best = BestWeights(checkpoint_path(run_dir).parent) if recipe.save.best else None
    checkpoints = Checkpoints(checkpoint_path(run_dir), recipe.save, stop or StopRequest(), best)
    shown = [Progress(run_dir, weights)] if progress else []
    trainer = _trainer(recipe, model, run_dir, shown, checkpoints, callbacks)
    return Prepared(module, card, trainer, checkpoints, checkpoint, record)


def _of_run(recipe: Recipe, run_dir: Path, resume: Resume) -> Recipe:
    """The recipe resolved, by the rules of the run in the folder where there is one."""
    if resume == "never" or not holds_run(run_dir):
        return resolved(recipe)
    recipe = in_rules_of_run(with_plan(recipe), run_dir)
    return with_normalisation_of(recipe, load_run_recipe(run_dir))


def _trainer(
    recipe: Recipe,
    model: nn.Module,
    run_dir: Path,
    progress: list[Progress],
    checkpoints: Checkpoints,
    further: Sequence[pl.Callback],
) -> pl.Trainer:
    save = recipe.save
    callbacks: list[pl.Callback] = [StopOnNonFiniteLoss(save.log_steps)]
    if recipe.ema.decay:
        callbacks.append(WeightAverage(recipe.ema))
    callbacks.append(AuxiliarySchedule(run_dir / "auxiliary.csv"))
    if recipe.regularize.drop_path_ramp:
        callbacks.append(DropPathRamp())
    if recipe.regularize.batchnorm_images:
        callbacks.append(BatchNormStatistics(recipe.regularize.batchnorm_images))
    callbacks += further
    if checkpoints.best is not None:
        callbacks.append(checkpoints.best)
    if recipe.early_stopping.patience:
        callbacks.append(EarlyStopping(recipe.early_stopping))
    callbacks += progress
    callbacks.append(History(run_dir / "metrics.csv", save.log_steps))
    callbacks.append(checkpoints)
    return pl.Trainer(
        **trainer_arguments(recipe.hardware, model),
        max_epochs=recipe.epochs,
        max_steps=recipe.max_steps or -1,
        check_val_every_n_epoch=save.validate_epochs,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=save.log_steps,
        logger=make_loggers(save.loggers, run_dir) or False,
        callbacks=callbacks,
    )


def _position(checkpoint: dict[str, Any], path: Path) -> tuple[int, int]:
    for name, state in checkpoint.get("callbacks", {}).items():
        if name.startswith(Checkpoints.__qualname__):
            epoch, batch = state["position"]
            return epoch, batch
    raise ValueError(f"{path} was not written by castling train")


def _silence() -> Callable[[], None]:
    stack = contextlib.ExitStack()
    stack.enter_context(warnings.catch_warnings())
    warnings.filterwarnings("ignore", module="lightning.*")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric", "lightning_utilities"):
        logger = logging.getLogger(name)
        stack.callback(logger.setLevel, logger.level)
        logger.setLevel(logging.ERROR)
    return stack.close


#: Silences Lightning's tips and warnings; errors are raised as exceptions.
quiet_lightning = SharedSetting(_silence)
