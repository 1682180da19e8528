"""``recipe.yaml`` of a run: read as a whole or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from castling.utils.yaml_files import read_yaml


def read_run_recipe(path: Path) -> dict[str, Any]:
    """The plain values of a run's recipe.

    A run writes every option out, ``switch`` last. So a file that lost its end is told from a short
    recipe, whose missing options would silently take their defaults.

    Raises:
        ValueError: the file is missing, empty, half or something else; the message names it.
    """
    try:
        values = read_yaml(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is missing or damaged ({error})") from error
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise ValueError(f"{path} is damaged: it is not a recipe")
    if not text.endswith("\n") or ("task" in values and "switch" not in values):
        raise ValueError(f"{path} is damaged: its end is missing")
    return values
