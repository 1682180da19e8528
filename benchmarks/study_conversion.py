"""A public softmax ViT turned linear by ``castling convert``: every attention on one small budget.

The teacher is a ViT-Ti/16 fine-tuned on Tiny-ImageNet-200. Each row replaces the softmax of all its
layers, or of those that ``--keep`` does not number, and learns from the training images without
their labels. Top-1 and agreement at the end are of all validation images; those of the stages are
of ``--held_out`` of them. No stage learns from either. Writes ``results/study_conversion.json`` and
``.md``; rows that earlier calls wrote stay, finished models are kept, interrupted conversions go
on. Half an hour a row on one core at the default lengths.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import castling
from castling.attention import AttentionConfig
from castling.conversion import ConversionConfig
from castling.data import open_source
from castling.data.config import LoaderConfig
from castling.data.sources.folder import FolderConfig
from castling.deploy.conversion_images import conversion_data
from castling.deploy.converting import REPORT, convert_saved
from castling.models.card import ModelCard
from castling.models.saved import open_model, save_model
from castling.profiling.machine import machine_facts
from castling.tasks.normalize import Normalize
from castling.utils.files import write_json
from studies import (
    add_conversion_options,
    conversion_config,
    read_study,
    study_parser,
    write_study,
)

NAME = "study_conversion"
TAYLOR = castling.QuadraticTaylor(form="exact", qk_norm=False)
MEAN = castling.LinearAngular(constant="mean", normalize="rowsum")
ROWS: dict[str, tuple[str, AttentionConfig]] = {
    "relu": ("ReLU", castling.ReLULinear()),
    "relu_grid2d": ("ReLU, 3×3 residual", castling.ReLULinear(local="grid2d")),
    "relu_castling": (
        "ReLU, residual and auxiliary",
        castling.ReLULinear(local="grid2d", auxiliary=castling.MaskedSoftmax()),
    ),
    "taylor": ("exact Taylor, raw scores", TAYLOR),
    "taylor_grid2d": (
        "exact Taylor, raw scores, 3×3 residual",
        dataclasses.replace(TAYLOR, local="grid2d"),
    ),
    "hedgehog": ("Hedgehog", castling.Hedgehog()),
    "hedgehog_grid2d": ("Hedgehog, 3×3 residual", castling.Hedgehog(local="grid2d")),
    "angular_mean": ("angular, mean, row sum", MEAN),
    "angular_mean_grid2d": (
        "angular, mean, row sum, 3×3 residual",
        dataclasses.replace(MEAN, local="grid2d"),
    ),
    "angular": ("angular, as published", castling.LinearAngular(local="none")),
    "angular_castling": (
        "angular, as published, residual and auxiliary",
        castling.LinearAngular(local="grid2d", auxiliary=castling.MaskedSoftmax()),
    ),
}


def save_teacher(weights: str, data: str, folder: Path) -> Path:
    """The public ViT-Ti as a saved model, with the images that it was fine-tuned on."""
    if not (folder / "model.json").exists():
        model = castling.create_model("vit_tiny_patch16_224", num_classes=200)
        castling.load_checkpoint(model, weights)
        card = ModelCard(
            name="vit_tiny_patch16_224",
            classes=open_source(FolderConfig(path=data)).info.classes,
            preprocessing={
                "image_size": [224, 224],
                "mean": [0.5] * 3,
                "std": [0.5] * 3,
                "interpolation": "bicubic",
                "crop_fraction": 0.875,
            },
            kwargs={"num_classes": 200},
        )
        save_model(model, folder, card)
    return folder


@torch.inference_mode()
def scores(folder: Path, data: str) -> tuple[Tensor, Tensor]:
    """Chosen classes and labels of all validation images; found once."""
    found = folder / "choices.json"
    if found.exists():
        chosen, labels = json.loads(found.read_text(encoding="utf-8"))
        return torch.tensor(chosen), torch.tensor(labels)
    model, card = open_model(folder)
    images = conversion_data(card, FolderConfig(path=data), LoaderConfig(batch_size=50), seed=0)
    normalize: nn.Module = Normalize(card.preprocessing["mean"], card.preprocessing["std"])
    chosen, labels = [], []
    for batch in images.loader("val"):
        chosen.append(model(normalize(batch.images)).argmax(dim=1))
        labels.append(torch.as_tensor(batch.targets["label"]))
    write_json(found, [torch.cat(each).tolist() for each in (chosen, labels)])
    return torch.cat(chosen), torch.cat(labels)


def row_of(
    options: argparse.Namespace, name: str, folder: Path, config: ConversionConfig
) -> dict[str, Any]:
    """One attention converted; figures after every stage, and of all validation images."""
    label, attention = ROWS[name]
    if not (folder / REPORT).exists():
        convert_saved(
            str(options.runs / "teacher"),
            FolderConfig(path=options.data),
            attention,
            folder,
            where=[f"blocks.{i}.attn" for i in range(12) if i not in options.keep],
            config=config,
            loader=LoaderConfig(batch_size=32),
            seed=options.seed,
            progress=lambda text: print(text, flush=True),
        )
    report = json.loads((folder / REPORT).read_text(encoding="utf-8"))
    own, labels = scores(folder, options.data)
    chosen, _ = options.teacher_scores
    return {
        "label": label,
        "softmax_layers": sorted(options.keep),
        "views": [config.closed_form_images, config.layer_views, config.model_views],
        "rates": [config.attention_lr, config.rest_lr],
        "seed": options.seed,
        "machine": machine_facts(torch.device("cpu"))["device"],
        "seconds": round(sum(stage["seconds"] for stage in report["stages"])),
        "test_images": len(labels),
        "top1": 100 * float((own == labels).float().mean()),
        "agreement": 100 * float((own == chosen).float().mean()),
        "teacher_top1": 100 * float((chosen == labels).float().mean()),
        "stages": report["stages"],
    }


def table(study: Mapping[str, Any]) -> str:
    """The study as a Markdown table."""
    stages = ("replaced", "closed form", "layer by layer", "end to end")
    errors = [f"layer error: {stage}" for stage in stages[:3]]
    agreements = [f"agreement: {stage}" for stage in stages]
    head = ["attention", "softmax layers", "views", "seed", *errors, *agreements]
    head += ["test images", "top-1", "of the teacher's", "agreement", "minutes"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in study["rows"].values():
        found = {stage["stage"]: stage for stage in row["stages"]}
        kept = ", ".join(map(str, row["softmax_layers"])) or "none"
        cells = [
            *(row["label"], kept, f"{sum(row['views']):,}", str(row["seed"])),
            *(
                f"{_mean(found[name]['layer_errors']):.3f}" if name in found else "–"
                for name in stages[:3]
            ),
            *(f"{100 * found[name]['agreement']:.1f}" if name in found else "–" for name in stages),
            f"{row['test_images']:,}",
            f"{row['top1']:.1f}",
            f"{100 * row['top1'] / row['teacher_top1']:.1f} %",
            f"{row['agreement']:.1f}",
            f"{row['seconds'] / 60:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def main() -> None:
    """Convert the rows asked for."""
    parser = study_parser(__doc__, NAME, "tinyimagenet200.zip", list(ROWS))
    parser.add_argument("--weights", required=True, help="of the teacher")
    parser.add_argument("--keep", type=int, nargs="*", default=[], help="layers left softmax")
    add_conversion_options(parser, images=256, layer_views=6000, model_views=6000, held_out=256)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = conversion_config(options)
    path = options.results / f"{NAME}.json"
    study = read_study(
        path,
        f"python benchmarks/{NAME}.py --data tinyimagenet200.zip --weights "
        "vit_tiny_patch16_224.tinyimagenet200.safetensors",
    )
    options.teacher_scores = scores(
        save_teacher(options.weights, options.data, options.runs / "teacher"), options.data
    )
    for name in options.rows:
        kept = "-".join(map(str, sorted(options.keep))) or "none"
        key = f"{name}-{kept}-{config.layer_views}-{config.model_views}-seed{options.seed}"
        study["rows"][key] = row_of(options, name, options.runs / key, config)
        order = sorted(study["rows"], key=lambda k: list(ROWS).index(k.partition("-")[0]))
        write_study(path, study, order, table)


if __name__ == "__main__":
    main()
