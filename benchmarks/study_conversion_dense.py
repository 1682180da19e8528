"""Trained segmenters and detectors turned linear by ``castling convert``, their heads kept.

Takes finished runs of other studies, such as the softmax twin of ``study_camvid.py``, converts
their backbones on the images they were trained on, without labels, and evaluates both on test.
Writes ``results/study_conversion_dense.json`` and ``.md``; rows that earlier calls wrote stay,
finished models are kept, interrupted conversions go on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

import castling
from castling.attention import AttentionConfig
from castling.conversion import ConversionConfig
from castling.data.config import LoaderConfig
from castling.data.sources.unlabelled import UnlabelledConfig
from castling.deploy import evaluate
from castling.deploy.converting import REPORT, convert_saved
from castling.models.card import read_card
from castling.profiling.machine import machine_facts
from castling.tasks import task_from_card
from studies import (
    add_conversion_options,
    conversion_config,
    read_study,
    recipe_of_run,
    study_parser,
    write_study,
)

NAME = "study_conversion_dense"
TAYLOR = castling.QuadraticTaylor(form="exact", qk_norm=False, local="grid2d")
ROWS: dict[str, tuple[str, AttentionConfig]] = {
    "relu_grid2d": ("ReLU, 3×3 residual", castling.ReLULinear(local="grid2d")),
    "taylor_grid2d": ("exact Taylor, 3×3 residual", TAYLOR),
    "angular_mean_grid2d": (
        "angular, mean, row sum, 3×3 residual",
        castling.LinearAngular(constant="mean", normalize="rowsum", local="grid2d"),
    ),
}


def row_of(
    options: argparse.Namespace, teacher: Path, name: str, config: ConversionConfig
) -> dict[str, Any]:
    """One run converted to one attention."""
    label, attention = ROWS[name]
    recipe, folder = recipe_of_run(teacher), options.runs / f"{teacher.name}-{name}"
    if not (folder / REPORT).exists():
        convert_saved(
            str(teacher),
            UnlabelledConfig(path=options.data),
            attention,
            folder,
            size=options.size,
            config=config,
            loader=LoaderConfig(batch_size=16),
            seed=options.seed,
            progress=lambda text: print(text, flush=True),
        )
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    headline = task_from_card(read_card(teacher / "model.json")).headline
    return {
        "model": recipe.model.name,
        "start": "" if not recipe.model.checkpoint else "pre-trained",
        "label": label,
        "metric": headline,
        "views": [config.closed_form_images, config.layer_views, config.model_views],
        "size": list(options.size),
        "seed": options.seed,
        "machine": machine_facts(torch.device("cpu"))["device"],
        "seconds": round(sum(stage["seconds"] for stage in report["stages"])),
        "before": evaluate(teacher, recipe.data).metrics[headline],
        "after": evaluate(folder, recipe.data).metrics[headline],
        "stages": report["stages"],
    }


def table(study: Mapping[str, Any]) -> str:
    """The study as a Markdown table."""
    stages = ("replaced", "closed form", "layer by layer", "end to end")
    head = ["trained with softmax", "converted to", "views", *(f"cosine: {s}" for s in stages)]
    head += ["metric", "before", "after", "minutes"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in study["rows"].values():
        found = {stage["stage"]: stage for stage in row["stages"]}
        cells = [
            f"{row['model']} {row['start']}".strip(),
            row["label"],
            f"{sum(row['views']):,}",
            *(f"{found[name]['cosine']:.3f}" if name in found else "–" for name in stages),
            row["metric"],
            *(f"{row[key]:.1f}" for key in ("before", "after")),
            f"{row['seconds'] / 60:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Convert every run to every attention."""
    parser = study_parser(__doc__, NAME, "camvid.zip", list(ROWS))
    parser.add_argument("--teachers", nargs="+", type=Path, required=True, help="finished runs")
    parser.add_argument("--size", type=int, nargs=2, default=[192, 256], help="height, width")
    add_conversion_options(parser, images=128, layer_views=4000, model_views=4000, held_out=64)
    options = parser.parse_args()
    options.size = tuple(options.size)
    torch.set_num_threads(options.threads)
    config = conversion_config(options)
    path = options.results / f"{NAME}.json"
    study = read_study(
        path,
        f"python benchmarks/{NAME}.py --teachers RUN … --data camvid.zip "
        f"--layer_views {config.layer_views} --model_views {config.model_views}",
    )
    for teacher in options.teachers:
        for name in options.rows:
            key = f"{teacher.name}-{name}"
            study["rows"][key] = row_of(options, teacher, name, config)
            write_study(path, study, list(study["rows"]), table)


if __name__ == "__main__":
    main()
