"""What the studies of dense models share: figures of finished runs, and files that grow by rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from castling.data import Source, open_source
from castling.deploy import evaluate, model_folder
from castling.profiling.machine import machine_facts
from castling.tasks.result import read_result
from castling.train import Recipe, recipe_from_dict
from castling.utils.files import write_json


def read_study(path: Path, command: str) -> dict[str, Any]:
    """The study in a file, if ``command`` made it; otherwise a new one without rows."""
    if path.exists():
        study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if study["command"] == command:
            return study
    return {"command": command, "rows": {}}


def write_study(path: Path, study: dict[str, Any], order: Sequence[str]) -> None:
    """Write a study, its rows in the order of the keys in ``order``."""
    study["rows"] = {key: study["rows"][key] for key in order if key in study["rows"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, study)


def add_times(study: dict[str, Any], times: Mapping[str, Mapping[str, float]]) -> None:
    """Write milliseconds into the rows of a study, and where they were taken."""
    study["timed_on"] = machine_facts(torch.device("cpu"))
    for key, each in times.items():
        study["rows"][key]["milliseconds"] = dict(each)


def recipe_of_run(folder: Path) -> Recipe:
    """The recipe that a run was made with."""
    return recipe_from_dict(yaml.safe_load((folder / "recipe.yaml").read_text(encoding="utf-8")))


def source_of_run(folder: Path) -> Source:
    """The data that a run was trained on."""
    return open_source(recipe_of_run(folder).data.source)


def figures_of_run(folder: Path) -> dict[str, Any]:
    """Test metrics before and after the switch, those of the classes, and the certificate."""
    result, recipe = read_result(folder), recipe_of_run(folder)
    assert result is not None
    found: dict[str, Any] = {
        "machine": machine_facts(torch.device("cpu"))["device"],
        "epochs": recipe.epochs,
        "seed": recipe.seed,
        "parameters": result.parameters,
        "seconds": round(result.seconds),
        "test": _of_test(result.metrics),
        "classes": evaluate(model_folder(folder)).class_figures,
    }
    if result.switched_metrics:
        found["switched_test"] = _of_test(result.switched_metrics)
        found["switch"] = {
            key: result.switch[key] for key in ("max_gap", "agreement", "exact", "images")
        }
    return found


def _of_test(metrics: Mapping[str, float]) -> dict[str, float]:
    return {k.removeprefix("test_"): v for k, v in metrics.items() if k.startswith("test_")}
