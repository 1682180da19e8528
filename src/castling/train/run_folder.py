"""A run's folder: start a new run, resume the one in it, or return its result."""

from __future__ import annotations

import dataclasses
import errno
import logging
import os
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from castling.data import FileSource, FolderConfig, SourceConfig, open_source
from castling.data.split_record import SPLIT_FILE
from castling.models.saved import check_model_files
from castling.tasks.result import RESULT, TrainResult, read_result
from castling.train.recipe import Recipe
from castling.train.recipe_file import recipe_differences, recipe_to_yaml
from castling.train.recorded_split import load_run_recipe
from castling.utils.files import write_text
from castling.utils.text import few, first_line

_log = logging.getLogger(__name__)
#: What training writes or removes; a folder without ``recipe.yaml`` holds them of other origin.
_WRITTEN = (
    *("README.md", "auxiliary.csv", "best", "examples", "last", "metrics.csv", "model.json"),
    *("model.safetensors", "predictions.csv", "report.html", SPLIT_FILE, "switched"),
)
Resume = Literal["auto", "never", "must"]


def checkpoint_path(run_dir: Path) -> Path:
    """The checkpoint that a run resumes from."""
    return run_dir / "checkpoints" / "last.ckpt"


def holds_run(run_dir: Path) -> bool:
    """Whether a folder holds a run that may be resumed, or a finished one."""
    return checkpoint_path(run_dir).is_file() or (run_dir / RESULT).is_file()


def find_run(
    recipe: Recipe, run_dir: Path, resume: Resume, *, warn: bool = True
) -> tuple[TrainResult | None, Path | None]:
    """Decide whether to start, resume or return a finished result; writes nothing.

    Args:
        recipe: what is about to be trained.
        run_dir: where.
        resume: "auto" goes on with a run of the same recipe where there is one; "must" insists that
            there is; "never" starts anew and refuses to replace a finished run.
        warn: say where a finished run has a damaged file, and is therefore taken for unfinished.

    Returns:
        The result, where the same recipe has been finished here (not with "never"); the checkpoint
        to resume from, where there is one.

    Raises:
        FileExistsError: the folder holds another recipe's run, or a finished one with "never", or
            files that are no run's and would be replaced.
        FileNotFoundError: "must", and there is no checkpoint.
        ValueError: a file of the run is damaged; the message names it. Or the folder lies among
            the classes of the images.
    """
    if resume not in ("auto", "never", "must"):
        raise ValueError(f'resume must be "auto", "never" or "must", got {resume!r}')
    checkpoint = checkpoint_path(run_dir)
    started = checkpoint.is_file()
    finished = (run_dir / RESULT).is_file()
    if resume == "never":
        if finished:
            raise FileExistsError(
                f"{run_dir} holds a finished run; choose another folder or delete this one"
            )
        started = False
    elif finished or started:
        differences = recipe_differences(load_run_recipe(run_dir), recipe)
        if differences:
            state = "a finished" if finished else "an unfinished"
            raise FileExistsError(
                f"{run_dir} holds {state} run of another recipe; choose another folder, delete "
                "this one, or use its recipe. Differences:\n  " + "\n  ".join(differences)
            )
        if finished and (result := _whole_result(run_dir, started, warn)) is not None:
            return dataclasses.replace(result, already_finished=True), None
    elif resume == "must":
        raise FileNotFoundError(f"nothing to resume: {run_dir} has no checkpoints/last.ckpt")
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise FileExistsError(f"{run_dir} cannot be a run's folder: {existing} is a file")
    if not holds_run(run_dir):
        _check_foreign_files(run_dir)
    _check_outside_images(recipe.data.source, run_dir)
    return None, checkpoint if started else None


def _check_foreign_files(run_dir: Path) -> None:
    """Raise FileExistsError where training would replace files that no run has written."""
    if (run_dir / "recipe.yaml").exists():  # written first; of a run without a checkpoint yet
        return
    if taken := [name for name in _WRITTEN if os.path.lexists(run_dir / name)]:
        raise FileExistsError(
            f"{run_dir} is not the folder of a run, and training would replace what it holds: "
            f"{few(taken)}; choose another --run"
        )


def _check_outside_images(config: SourceConfig, run_dir: Path) -> None:
    """Raise ValueError where the run's folder would be taken for a class of its own images."""
    if not isinstance(config, FolderConfig):
        return
    folder, run = (Path(os.path.realpath(path)) for path in (config.path, run_dir))
    if not run.is_relative_to(folder):
        return
    source = open_source(config)
    assert isinstance(source, FileSource)
    tops = {Path(source.path(split, 0)).parts[0] for split in source.info.splits}
    has_splits = len(source.info.splits) > 1 or "train" in tops
    if not has_splits or run.relative_to(folder).parts[:1] in {(top,) for top in tops}:
        raise ValueError(
            f"{run_dir} lies within the images of {config.path}, where its folders would be taken "
            "for classes: choose another --run"
        )


def _whole_result(run_dir: Path, can_rebuild: bool, warn: bool) -> TrainResult | None:
    """The result of a finished run; None where a file is damaged that can be written again.

    Raises:
        ValueError: a file is damaged, and there is no checkpoint to write it from.
        FileNotFoundError: a file is missing, and there is no checkpoint to write it from.
    """
    try:
        result = read_result(run_dir)
        assert result is not None
        for folder in filter(None, (result.model_dir, result.switched_dir, result.other_dir)):
            check_model_files(folder)
        return result
    except (FileNotFoundError, ValueError) as error:
        if not can_rebuild:
            raise type(error)(
                f"{run_dir} was finished, but {first_line(error)}. Without "
                "checkpoints/last.ckpt it cannot be written again: delete the folder to train anew"
            ) from error
        if warn:
            _log.warning(
                "%s was finished, but %s: written again from checkpoints/last.ckpt",
                run_dir,
                first_line(error),
            )
        return None


def check_writable(run_dir: Path) -> None:
    """Raise PermissionError unless the folder, or the one it will be made in, may be written."""
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not os.access(existing, os.W_OK | os.X_OK):
        raise PermissionError(errno.EACCES, "may not be written", str(existing))


def make_run(recipe: Recipe, run_dir: Path, resume: Resume) -> None:
    """Create a run's folder; with "never", remove what an unfinished run left there."""
    checkpoints = checkpoint_path(run_dir).parent
    if resume == "never":
        for folder in (checkpoints, run_dir / "tensorboard"):
            shutil.rmtree(folder, ignore_errors=True)
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / "recipe.yaml", recipe_to_yaml(recipe))


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content; nothing in the file is executed.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"{path} cannot be read as a checkpoint ({type(error).__name__}): it is damaged or not "
            "ours; delete it to start the run anew"
        ) from error
