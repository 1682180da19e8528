"""Detectors trained from scratch on BCCD: castling before and after the switch, and its rivals.

Trains every row of ``ROWS`` with ``recipes/bccd.yaml`` and writes ``results/study_bccd.json`` and
``.md``, and one picture of drawn predictions a row. Finished runs are kept and interrupted ones are
resumed; rows that the same command wrote earlier stay. With ``--pretrain imagenette128.zip`` the
backbones are trained to classify first. The figures of speed come from ``--time``, on an idle
machine.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
import yaml

from castling.deploy import Predictor
from castling.tasks.result import read_result
from castling.train import recipe_from_dict, train
from drawn import drawn_boxes, save_sheet
from studies import (
    RECIPES,
    add_dense_options,
    add_times,
    figures_of_run,
    read_study,
    source_of_run,
    study_parser,
    write_study,
)
from whole_times import whole_times


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
    parser = study_parser(__doc__, "study_bccd", "bccd.zip", list(ROWS), epochs=100)
    add_dense_options(parser, draw=[0, 24, 48])
    parser.add_argument("--pretrain", default="", help="imagenette128.zip: train backbones first")
    parser.add_argument("--pretrain_epochs", type=int, default=20)
    parser.add_argument(
        "--time_only",
        action="store_true",
        help="train nothing and keep all figures but those of speed, for which runs of a few "
        "epochs will do",
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    end = "-pretrained" if options.pretrain else ""
    folders = {name: options.runs / f"{name}{end}-seed{options.seed}" for name in options.rows}
    for name, folder in folders.items():
        if options.collect or options.time_only:
            continue
        row, start = ROWS[name], ""
        if options.pretrain:
            start = pretrained(row, options.pretrain, options.pretrain_epochs, options.runs)
        recipe = recipe_of(row, options.data, options.epochs, options.seed, start)
        print(name, train(recipe, folder, progress=False), flush=True)
    done = {name: folder for name, folder in folders.items() if read_result(folder) is not None}
    path = options.results / f"study_bccd{end}.json"
    command = "python benchmarks/study_bccd.py --data bccd.zip"
    if options.pretrain:
        command += f" --pretrain imagenette128.zip --pretrain_epochs {options.pretrain_epochs}"
    study = read_study(path, f"{command} --epochs {options.epochs} --seed {options.seed}")
    if options.time_only and not done.keys() <= study["rows"].keys():
        parser.error(f"{path.name} lacks rows of this command: train them, or give its --epochs")
    for name, folder in () if options.time_only else done.items():
        before = study["rows"].get(name, {})
        study["rows"][name] = before | {"label": ROWS[name].label} | figures_of_run(folder)
        if options.draw:
            pictures = drawn_boxes(Predictor(folder), source_of_run(folder), "test", options.draw)
            place = options.pictures / f"bccd_{name}{end}.jpg"
            save_sheet(pictures, len(pictures), place)
    if options.time:
        add_times(study, whole_times(done, options.time))
    write_study(path, study, list(ROWS), table)


if __name__ == "__main__":
    main()
