"""What masked pre-training is worth: a small ViT, softmax and castled, with and without it.

Pre-trains DeiT-T on imagenette128's images without their labels (MAE), then trains it to classify
them, and does the second part from scratch as well; one recipe for all. Writes
``results/study_pretraining.json`` and ``.md``. Finished runs are kept, interrupted ones resumed;
rows that earlier calls wrote with the same epochs stay. About an hour a row on one core.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from castling.profiling.machine import machine_facts
from castling.tasks.result import TrainResult, read_result
from castling.train import recipe_from_dict, train
from pretraining_recipes import CASTLING, pretraining_recipe
from studies import RECIPES, keys_of, read_study, study_parser, write_study

NAME = "study_pretraining"
#: Label, backbone, its attention.
ROWS: dict[str, tuple[str, str, Mapping[str, Any] | None]] = {
    "softmax": ("DeiT-T, softmax", "deit_tiny_patch16_224", None),
    "castling": ("Castling-DeiT-T", "castling_deit_tiny_patch16_224", CASTLING),
}
STARTS = {"none": "from scratch", "mae": "MAE"}


def recipe_of(row: str, images: str, epochs: int, seed: int, checkpoint: str) -> Any:
    """The recipe of imagenette128 with the model of a row."""
    _, model, attention = ROWS[row]
    values = yaml.safe_load((RECIPES / "imagenette128.yaml").read_text(encoding="utf-8"))
    values["model"] = {"name": model, "checkpoint": checkpoint}
    if attention:
        values["model"]["attention"] = dict(attention)
    values["data"]["source"] = images
    values["schedule"] |= {"warmup_epochs": 1}
    values["save"] = {"validate_epochs": epochs}
    return recipe_from_dict(values | {"epochs": epochs, "seed": seed})


def trained(options: argparse.Namespace, name: str, start: str, seed: int) -> TrainResult:
    """Train a row, and its backbone first if it is to start from MAE."""
    folder, checkpoint = options.runs / f"{name}-{start}-seed{seed}", ""
    if start == "mae":
        checkpoint = f"{folder}-start"
        _, backbone, attention = ROWS[name]
        recipe = pretraining_recipe(
            backbone,
            attention,
            options.data,
            epochs=options.start_epochs,
            size=(128, 128),
            seed=seed,
        )
        train(recipe, Path(checkpoint), progress=False)
    recipe = recipe_of(name, options.data, options.epochs, seed, checkpoint)
    return train(recipe, folder, progress=False)


def figures(folder: Path, seed: int) -> dict[str, Any]:
    """Of a finished run, as plain values."""
    result = read_result(folder)
    assert result is not None
    found: dict[str, Any] = {
        "seed": seed,
        "machine": machine_facts(torch.device("cpu"))["device"],
        "seconds": round(result.seconds),
        "parameters": result.parameters,
        "top1": result.metrics["test_top1"],
        "top5": result.metrics["test_top5"],
    }
    if result.switched_metrics:
        found["switched_top1"] = result.switched_metrics["test_top1"]
        found["switch"] = {key: result.switch[key] for key in ("max_gap", "agreement", "exact")}
    return found


def table(study: Mapping[str, Any]) -> str:
    """The study as a Markdown table."""
    lines = [
        "| backbone | start | seed | top-1 | top-5 | top-1 after the switch | largest output gap |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in study["rows"].values():
        after = ["–", "–"]
        if "switch" in row:
            after = [f"{row['switched_top1']:.2f}", f"{row['switch']['max_gap']:.1e}"]
        top = [f"{row[key]:.2f}" for key in ("top1", "top5")]
        cells = [row["label"], row["start"], str(row["seed"]), *top, *after]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the rows that are not finished, then write the tables."""
    parser = study_parser(__doc__, NAME, "imagenette128.zip", list(ROWS), epochs=6)
    parser.add_argument("--starts", nargs="+", choices=list(STARTS), default=list(STARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--start_epochs", type=int, default=20)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    path = options.results / f"{NAME}.json"
    study = read_study(
        path,
        f"python benchmarks/{NAME}.py --data imagenette128.zip "
        f"--start_epochs {options.start_epochs} --epochs {options.epochs}",
    )
    jobs = [
        (name, start, seed)
        for seed in options.seeds
        for name in options.rows
        for start in options.starts
    ]
    for name, start, seed in jobs:
        key = f"{name}-{start}-seed{seed}"
        if not options.collect:
            print(key, trained(options, name, start, seed).metrics, flush=True)
        if read_result(options.runs / key) is not None:
            labels = {"label": ROWS[name][0], "start": STARTS[start]}
            study["rows"][key] = labels | figures(options.runs / key, seed)
    write_study(path, study, keys_of(study, list(ROWS), list(STARTS)), table)


if __name__ == "__main__":
    main()
