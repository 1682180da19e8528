"""What studies share: options, figures of finished runs, files that grow by rows."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from castling.conversion import ConversionConfig
from castling.data import Source, open_source
from castling.deploy import evaluate, model_folder
from castling.profiling.machine import machine_facts
from castling.tasks.result import read_result
from castling.train import Recipe, recipe_from_dict
from castling.utils.files import write_json, write_text

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"


def study_parser(
    description: str | None, name: str, data: str, rows: Sequence[str], *, epochs: int = 0
) -> argparse.ArgumentParser:
    """The options that every study has.

    Args:
        description: of the command.
        name: of the study: that of its runs.
        data: file of its images.
        rows: names of all rows.
        epochs: of training, unless told otherwise; 0 for a study that trains nothing.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", required=True, help=f"{data} or a folder of its layout")
    parser.add_argument("--rows", nargs="+", choices=list(rows), default=list(rows))
    parser.add_argument("--runs", type=Path, default=Path("runs") / name)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--threads", type=int, default=1)
    if epochs:
        parser.add_argument("--epochs", type=int, default=epochs)
        parser.add_argument("--collect", action="store_true", help="train nothing")
    return parser


def add_conversion_options(
    parser: argparse.ArgumentParser, images: int, layer_views: int, model_views: int, held_out: int
) -> None:
    """Lengths of the stages of a conversion, and what every study of conversions has."""
    parser.add_argument("--closed_form_images", type=int, default=images)
    parser.add_argument("--layer_views", type=int, default=layer_views)
    parser.add_argument("--model_views", type=int, default=model_views)
    parser.add_argument("--attention_lr", type=float, default=ConversionConfig.attention_lr)
    parser.add_argument("--rest_lr", type=float, default=ConversionConfig.rest_lr)
    parser.add_argument("--held_out", type=int, default=held_out)
    parser.add_argument("--seed", type=int, default=0)


def conversion_config(options: argparse.Namespace) -> ConversionConfig:
    """Of the options of :func:`add_conversion_options`."""
    names = [field.name for field in dataclasses.fields(ConversionConfig)]
    return ConversionConfig(**{n: getattr(options, n) for n in names if hasattr(options, n)})


def add_dense_options(parser: argparse.ArgumentParser, draw: Sequence[int]) -> None:
    """Seed, pictures and times of a study of dense models; ``draw`` are test images."""
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--draw", nargs="*", type=int, default=list(draw), help="test images")
    parser.add_argument("--time", type=float, default=0.0, help="seconds of timing; 0 is none")


def read_study(path: Path, command: str) -> dict[str, Any]:
    """The study in a file, if ``command`` made it; otherwise a new one without rows."""
    if path.exists():
        study: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if study["command"] == command:
            return study
    return {"command": command, "rows": {}}


def write_study(
    path: Path,
    study: dict[str, Any],
    order: Sequence[str],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Write a study, its rows in the order of the keys in ``order``, and print its table."""
    study["rows"] = {key: study["rows"][key] for key in order if key in study["rows"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, study)
    write_text(path.with_suffix(".md"), table(study))
    print(table(study))


def keys_of(study: Mapping[str, Any], rows: Sequence[str], starts: Sequence[str]) -> list[str]:
    """ROW-START-seedN of all rows, starts and the seeds that a study has, in this order."""
    seeds = sorted({row["seed"] for row in study["rows"].values()})
    return [f"{row}-{start}-seed{seed}" for row in rows for start in starts for seed in seeds]


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
