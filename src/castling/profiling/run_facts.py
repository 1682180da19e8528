"""What a finished run's folder says about it."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from castling.models.card import CARD, ModelCard, read_card
from castling.models.saved import open_model
from castling.ops.macs import macs
from castling.tasks.interface import Task
from castling.tasks.registry import task_from_card
from castling.tasks.result import RESULT, TrainResult, read_result


@dataclass(frozen=True)
class RunFacts:
    """What a finished run's folder says.

    Attributes:
        folder: of the run.
        result: its outcome.
        card: of the trained model; None where it cannot be read.
        task: that the card names; None where it is not known here.
        recipe: plain values of ``recipe.yaml``; empty where there is none.
        macs: multiply-accumulates of one image of the model in use; None where not countable.
    """

    folder: Path
    result: TrainResult
    card: ModelCard | None
    task: Task | None
    recipe: dict[str, Any]
    macs: int | None

    @property
    def data(self) -> str:
        """What the data is called."""
        data = self.recipe.get("data") or {}
        source = data.get("source") or {}
        if isinstance(source, str):
            return source
        name = str(source.get("name", "unknown data"))
        return str(source.get("path") or source.get("dataset") or name)

    @property
    def split(self) -> str:
        """The split that sums the run up: ``test``, or ``val`` where there is no other."""
        images = self.result.images
        return "val" if images and "test" not in images else "test"


def read_run(run_dir: str | os.PathLike[str]) -> RunFacts:
    """The facts of a finished run.

    Raises:
        FileNotFoundError: the run is not finished, or there is none.
    """
    folder = Path(run_dir)
    result = read_result(folder)
    if result is None:
        raise FileNotFoundError(f"{folder} holds no {RESULT}: it is not a finished run")
    recipe_file = folder / "recipe.yaml"
    recipe = (
        yaml.safe_load(recipe_file.read_text(encoding="utf-8")) if recipe_file.is_file() else None
    )
    card, task, count = None, None, None
    if (folder / CARD).is_file():
        card = read_card(folder / CARD)
        switched = folder / "switched"
        used = switched if (switched / CARD).is_file() else folder
        # Models and tasks of an extension that is not imported here are left out.
        with suppress(ValueError):
            task = task_from_card(card)
        with suppress(ValueError, RuntimeError, OSError):
            size = card.image_size if task is None else task.input_size
            count = macs(open_model(used)[0], (3, *size)).total
    return RunFacts(folder, result, card, task, recipe or {}, count)
