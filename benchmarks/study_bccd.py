"""Detectors trained from scratch on BCCD: castling before and after the switch, and its rivals.

Trains every row of ``ROWS`` with ``recipes/bccd.yaml`` and writes ``results/study_bccd.json`` and
``.md``, and one picture of drawn predictions a row. Finished runs are kept and interrupted ones are
resumed. With ``--pretrain imagenette128.zip`` the backbones are trained to classify first. The
figures of speed come from ``--time``, on an idle machine.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml

import castling
from castling.data import BatchKey, open_source
from castling.deploy import Predictor, evaluate, export_saved, model_folder
from castling.export import open_exported
from castling.models.saved import open_model
from castling.profiling.machine import machine_facts
from castling.profiling.timing import cpu_threads, time_alternately, timer_for
from castling.tasks import task_from_card
from castling.tasks.result import TrainResult, read_result
from castling.train import open_data, recipe_from_dict, train
from castling.utils.files import write_json, write_text
from drawn import drawn_samples, save_sheet

HERE = Path(__file__).parent
RECIPES = HERE.parent / "recipes"


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        label: in the table.
        model: HEAD/BACKBONE.
        changes: to the recipe, section → option → value.
    """

    label: str
    model: str
    changes: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)


ROWS = {
    "castling": Row("PicoDet-S, Castling backbone", "picodet_s/castling_levit_s8_s"),
    "softmax": Row("PicoDet-S, its softmax twin", "picodet_s/levit_s8_s"),
    "esnet": Row("PicoDet-S, stock ESNet", "picodet_s/esnet_s"),
    "d_fine": Row(
        "D-FINE, CAS-ViT-XS",
        "d_fine/cas_vit_xs",
        {"optim": {"lr": 4e-4, "weight_decay": 1e-4}, "clip": {"mode": "norm", "value": 0.1}},
    ),
}


def recipe_of(row: Row, data: str, epochs: int, seed: int, checkpoint: str = "") -> Any:
    """The recipe of BCCD with the model of a row."""
    values = yaml.safe_load((RECIPES / "bccd.yaml").read_text())
    for section, options in row.changes.items():
        values[section] = values.get(section, {}) | options
    values["model"] = {"name": row.model, "checkpoint": checkpoint}
    values["data"]["source"] = data
    values["hardware"] = {"channels_last": True}  # a tenth faster on a CPU
    return recipe_from_dict(values | {"epochs": epochs, "seed": seed})


def pretrained(row: Row, data: str, epochs: int, runs: Path) -> str:
    """The folder of a classifier with the backbone of a row, trained if it is not."""
    backbone = row.model.partition("/")[2]
    values = yaml.safe_load((RECIPES / "imagenette128.yaml").read_text())
    values["model"] = {"name": backbone}
    values["data"]["source"] = data
    folder = runs / f"classifier-{backbone}"
    result = train(recipe_from_dict(values | {"epochs": epochs}), folder, progress=False)
    print(backbone, result.metrics, flush=True)
    return str(folder)


def summarise(result: TrainResult, folder: Path) -> dict[str, Any]:
    """Test metrics before and after the switch, those of the classes, and the certificate."""
    found: dict[str, Any] = {
        "parameters": result.parameters,
        "seconds": round(result.seconds),
        "test": {k.removeprefix("test_"): v for k, v in result.metrics.items() if "test_" in k},
        "classes": evaluate(model_folder(folder)).class_figures,
    }
    if result.switched_metrics:
        switched = result.switched_metrics.items()
        found["switched_test"] = {k.removeprefix("test_"): v for k, v in switched if "test_" in k}
        found["switch"] = {
            key: result.switch[key] for key in ("max_gap", "agreement", "exact", "images")
        }
    return found


def times(folders: dict[str, Path], seconds: float) -> dict[str, dict[str, float]]:
    """Row → runtime → median milliseconds of a whole detector, one image, one thread."""
    calls: dict[tuple[str, str], Any] = {}
    with cpu_threads(1), torch.inference_mode(), tempfile.TemporaryDirectory() as temporary:
        for name, folder in folders.items():
            model, card = open_model(model_folder(folder))
            task = task_from_card(card)
            images = test_images(folder, 1)
            castling.fold_(model, images)
            calls[name, "eager"] = lambda m=model, t=task, x=images: t.outputs(m, x)
            for runtime, suffix in (("onnxruntime", "onnx"), ("openvino", "xml")):
                path = Path(temporary) / f"{name}.{suffix}"
                export_saved(folder, path)
                calls[name, runtime] = open_exported(path, threads=1).runner(images)
        timings = time_alternately(
            calls, rounds=30, seconds=seconds, timer=timer_for(torch.device("cpu"))
        )
    found: dict[str, dict[str, float]] = {}
    for (name, runtime), timing in timings.items():
        found.setdefault(name, {})[runtime] = round(timing.milliseconds, 2)
    return found


def test_images(folder: Path, count: int) -> torch.Tensor:
    """Normalised test images (B, 3, H, W) as a run's model takes them."""
    recipe = recipe_from_dict(yaml.safe_load((folder / "recipe.yaml").read_text()))
    data, task = open_data(recipe)
    return task.preprocess(data.dataset("test")[BatchKey(tuple(range(count)))].images)


def draw(folder: Path, places: list[int], path: Path) -> None:
    """Predictions on test images, and the labelled objects in white, side by side as one JPEG."""
    recipe = recipe_from_dict(yaml.safe_load((folder / "recipe.yaml").read_text()))
    source = open_source(recipe.data.source)
    pictures = drawn_samples(Predictor(folder), source, "test", places)
    save_sheet(pictures, len(places), path)


def table(study: dict[str, Any]) -> str:
    """The study as a Markdown table."""
    lines = [
        "| detector | parameters | AP | AP50 | after the switch: AP | AP50 | gap | agreement "
        "| AP50 by class | eager ms | ONNX Runtime ms | OpenVINO ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in study["rows"].values():
        test, switched = row["test"], row.get("switched_test")
        after = ["–"] * 4
        if switched:
            certificate = row["switch"]
            after = [
                f"{switched['AP']:.1f}",
                f"{switched['AP50']:.1f}",
                f"{certificate['max_gap']:.1e}",
                f"{100 * certificate['agreement']:.1f} %",
            ]
        classes = ", ".join(f"{k} {v['AP50']:.1f}" for k, v in row["classes"].items())
        speed = [f"{v:.1f}" for v in row.get("milliseconds", {}).values()] or ["–"] * 3
        cells = [
            row["label"],
            f"{row['parameters']:,}",
            f"{test['AP']:.1f}",
            f"{test['AP50']:.1f}",
            *after,
            classes,
            *speed,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the rows that are not finished, then write tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="bccd.zip or a folder of its layout")
    parser.add_argument("--pretrain", default="", help="imagenette128.zip: train backbones first")
    parser.add_argument("--pretrain_epochs", type=int, default=20)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--runs", type=Path, default=Path("runs/study_bccd"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--draw", nargs="*", type=int, default=[0, 24, 48], help="test images")
    parser.add_argument("--time", type=float, default=0.0, help="seconds of timing; 0 is none")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--collect", action="store_true", help="train nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    end = "-pretrained" if options.pretrain else ""
    folders = {name: options.runs / f"{name}{end}-seed{options.seed}" for name in options.rows}
    for name, folder in folders.items():
        if options.collect:
            continue
        row, start = ROWS[name], ""
        if options.pretrain:
            start = pretrained(row, options.pretrain, options.pretrain_epochs, options.runs)
        recipe = recipe_of(row, options.data, options.epochs, options.seed, start)
        print(name, train(recipe, folder, progress=False), flush=True)
    options.results.mkdir(parents=True, exist_ok=True)
    done = {name: folder for name, folder in folders.items() if read_result(folder) is not None}
    rows: dict[str, Any] = {}
    for name, folder in done.items():
        result = read_result(folder)
        assert result is not None
        rows[name] = {"label": ROWS[name].label, **summarise(result, folder)}
        if options.draw:
            draw(folder, options.draw, options.pictures / f"bccd_{name}{end}.jpg")
    if options.time:
        for name, each in times(done, options.time).items():
            rows[name]["milliseconds"] = each
    pretraining = f" --pretrain imagenette128.zip --pretrain_epochs {options.pretrain_epochs}"
    study = {
        "command": "python benchmarks/study_bccd.py --data bccd.zip"
        + (pretraining if options.pretrain else "")
        + f" --epochs {options.epochs} --seed {options.seed}",
        "recipe": yaml.safe_load((RECIPES / "bccd.yaml").read_text()) | {"epochs": options.epochs},
        "machine": machine_facts(torch.device("cpu")),
        "rows": rows,
    }
    write_json(options.results / f"study_bccd{end}.json", study)
    write_text(options.results / f"study_bccd{end}.md", table(study))
    print(table(study))


if __name__ == "__main__":
    main()
