"""A run's folder: start a new run, resume the one in it, or return its result."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any, Literal

import torch

from castling.tasks.result import RESULT, TrainResult, read_result
from castling.train.recipe import Recipe
from castling.train.recipe_file import recipe_differences, recipe_to_yaml
from castling.train.recorded_split import load_run_recipe
from castling.utils.files import write_text

Resume = Literal["auto", "never", "must"]


def checkpoint_path(run_dir: Path) -> Path:
    """The checkpoint that a run resumes from."""
    return run_dir / "checkpoints" / "last.ckpt"


def holds_run(run_dir: Path) -> bool:
    """Whether a folder holds a run that may be resumed, or a finished one."""
    return checkpoint_path(run_dir).is_file() or (run_dir / RESULT).is_file()


def find_run(
    recipe: Recipe, run_dir: Path, resume: Resume
) -> tuple[TrainResult | None, Path | None]:
    """Decide whether to start, resume or return a finished result; writes nothing.

    Args:
        recipe: what is about to be trained.
        run_dir: where.
        resume: "auto" goes on with a run of the same recipe where there is one; "must" insists that
            there is; "never" starts anew and refuses to replace a finished run.

    Returns:
        The result, where the same recipe has been finished here (not with "never"); the checkpoint
        to resume from, where there is one.

    Raises:
        FileExistsError: the folder holds another recipe's run, or a finished one with "never".
        FileNotFoundError: "must", and there is no checkpoint.
    """
    if resume not in ("auto", "never", "must"):
        raise ValueError(f'resume must be "auto", "never" or "must", got {resume!r}')
    result = read_result(run_dir)
    checkpoint = checkpoint_path(run_dir)
    started = checkpoint.is_file()
    if resume == "never":
        if result is not None:
            raise FileExistsError(
                f"{run_dir} holds a finished run; choose another folder or delete this one"
            )
        started = False
    elif result is not None or started:
        differences = recipe_differences(load_run_recipe(run_dir), recipe)
        if differences:
            state = "a finished" if result is not None else "an unfinished"
            raise FileExistsError(
                f"{run_dir} holds {state} run of another recipe; choose another folder, delete "
                "this one, or use its recipe. Differences:\n  " + "\n  ".join(differences)
            )
        if result is not None:
            return dataclasses.replace(result, already_finished=True), None
    elif resume == "must":
        raise FileNotFoundError(f"nothing to resume: {run_dir} has no checkpoints/last.ckpt")
    existing = next(folder for folder in (run_dir, *run_dir.absolute().parents) if folder.exists())
    if not existing.is_dir():
        raise FileExistsError(f"{run_dir} cannot be a run's folder: {existing} is a file")
    return None, checkpoint if started else None


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
