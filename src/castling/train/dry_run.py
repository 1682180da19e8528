"""Try a recipe for a few steps on generated images, without its data and teacher weights."""

from __future__ import annotations

import dataclasses
import os
import tempfile
from pathlib import Path

from castling.data.errors import plain_data_errors
from castling.data.sources import source_from
from castling.models.dense import head_spec
from castling.models.names import split_name
from castling.tasks import TaskConfig, task_class
from castling.tasks.result import TrainResult
from castling.train.build import check, check_starting_weights
from castling.train.hardware import check_hardware
from castling.train.recipe import ModelConfig, Recipe
from castling.train.recorded_split import ChangedData
from castling.train.resolve import resolved
from castling.train.run_folder import Resume, check_writable
from castling.train.run_lock import check_unlocked
from castling.train.trainer import prepare, quiet_lightning, train


def dry_run(
    recipe: Recipe,
    steps: int = 1,
    *,
    images: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    batch_size: int = 4,
    teacher: str | None = None,
    run_dir: str | os.PathLike[str] | None = None,
    resume: Resume = "auto",
    changed_data: ChangedData = "refuse",
) -> TrainResult:
    """Run a recipe for a few steps through everything it does: training, saving, switching.

    Model, optimiser, schedule, loss, augmentation, averaging and clipping are the recipe's. The
    number of classes follows from the images, a teacher has random weights, and starting weights
    are compared with the model but not loaded. Runs on the CPU, in a temporary folder.

    With ``run_dir``, everything that :func:`castling.train.train` checks before its first step is
    checked first: the run's folder, devices, the images, starting weights, teacher, loggers.

    Args:
        recipe: what to try.
        steps: optimiser steps.
        images: a folder or zip of images; None generates noise.
        image_size: side in pixels in place of the recipe's, of multi-scale batches too.
        batch_size: in place of the recipe's.
        teacher: a smaller timm model in place of the recipe's teacher.
        run_dir: folder of the run to check as well; nothing is written to it. None tries the
            recipe without its data and weights.
        resume: as for ``train``, with ``run_dir``.
        changed_data: as for ``train``, with ``run_dir``.

    Returns:
        The result. Its metrics are meaningless, and its folders no longer exist.

    Raises:
        ValueError: and others, as ``train`` raises them.
    """
    recipe = resolved(recipe)
    if run_dir is None:
        check_hardware(recipe.hardware)
        check_starting_weights(recipe)
    else:
        check(recipe)  # also of a run that is finished
        check_unlocked(Path(run_dir))
        with quiet_lightning(), plain_data_errors():
            prepare(recipe, Path(run_dir), resume, changed_data=changed_data)
        check_writable(Path(run_dir))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if images is None:
            count = max(4, batch_size * steps)
            source = task_class(recipe.task).generate_images(folder / "images", count)
        else:
            source = source_from(os.fspath(images))
        transform = recipe.data.transform
        if image_size is not None:
            transform = transform.at_size(image_size)
        trial = dataclasses.replace(
            recipe,
            task=_without_weights(recipe.task, teacher),
            model=_model_without_weights(recipe.model),
            data=dataclasses.replace(
                recipe.data,
                source=source,
                split=dataclasses.replace(recipe.data.split, subset=None, val_subset=None),
                transform=transform,
                loader=dataclasses.replace(
                    recipe.data.loader, batch_size=batch_size, eval_batch_size=None, workers=0
                ),
            ),
            epochs=1,
            max_steps=steps,
            save=dataclasses.replace(recipe.save, loggers=()),
            regularize=dataclasses.replace(
                recipe.regularize,
                batchnorm_images=min(recipe.regularize.batchnorm_images, batch_size),
            ),
            hardware=dataclasses.replace(
                recipe.hardware,
                accelerator="cpu",
                devices=1,
                nodes=1,
                strategy="auto",
                precision="32",
                workers=0,
            ),
        )
        return train(trial, folder / "run", progress=False)


def _model_without_weights(model: ModelConfig) -> ModelConfig:
    """The model's options, without files and network."""
    head, _ = split_name(model.name)
    options = {**model.head, **(head_spec(head).config.trial_options if head else {})}
    return dataclasses.replace(
        model, checkpoint="", checkpoint_key="", pretrained=False, head=options
    )


def _without_weights(task: TaskConfig, teacher: str | None) -> TaskConfig:
    """The task's options, its teacher replaced where asked for and with random weights."""
    distill = getattr(task, "distill", None)
    if distill is None or distill.kind == "none":
        return task
    teacher = teacher or distill.teacher
    free = dataclasses.replace(distill, teacher=teacher, checkpoint="", pretrained=False)
    return dataclasses.replace(task, distill=free)  # type: ignore[call-arg]
