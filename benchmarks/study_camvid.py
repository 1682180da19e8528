"""Segmenters trained on CamVid: three families, castling before and after the switch, its twins.

Trains the rows asked for with ``recipes/camvid.yaml``, made smaller for two CPU cores: half an hour
to an hour a row. Writes ``results/study_camvid.json`` and ``.md``, and one picture of drawn
predictions a row. Rows that earlier calls wrote at the same number of epochs stay; finished runs
are kept and interrupted ones resumed. ``--start`` trains the backbone on images without labels
first: ``imagenette128`` and ``camvid`` by hidden pixels (MAE of a ViT, SimMIM of others),
``features`` by the features of EfficientNet-Lite0 on imagenette128. ``public`` takes the public
softmax ViT-Ti of ``--weights`` instead. The figures of speed come from ``--time``, on an idle
machine.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from castling.deploy import Predictor
from castling.tasks.result import read_result
from castling.train import recipe_from_dict, train
from drawn import drawn_masks, save_sheet
from pretraining_recipes import CASTLING, pretraining_recipe
from studies import (
    RECIPES,
    add_dense_options,
    add_times,
    figures_of_run,
    keys_of,
    read_study,
    source_of_run,
    study_parser,
    write_study,
)
from whole_times import whole_times

NAME = "study_camvid"


@dataclasses.dataclass(frozen=True)
class Training:
    """What a row changes in the recipe of CamVid.

    Attributes:
        crop: height and width of the part of an image that a step sees, pixels.
        scale: range of random enlargement before.
        evaluated_at: enlargement of whole images when the model is evaluated and used.
        class_weights: of the loss, as in the recipe.
        backbone_rate: factor of the backbone's learning rate.
        epochs: of the row; None is that of the call.
    """

    crop: tuple[int, int] = (192, 256)
    scale: tuple[float, float] = (0.5, 1.25)
    evaluated_at: float = 1.0
    class_weights: str | tuple[float, ...] = "auto"
    backbone_rate: float = 1.0
    epochs: int | None = None


#: Square roots of the automatic weights of CamVid's eleven classes, on its training images.
_MILD = (0.559, 0.489, 1.368, 0.431, 0.929, 0.698, 1.326, 1.336, 0.845, 1.455, 1.564)
#: For backbones that know much: small steps, and enlarged images, since poles and signs are
#: narrower than the patches of a ViT.
FINE = Training(
    crop=(256, 352),
    scale=(1.0, 2.0),
    evaluated_at=1.5,
    class_weights=_MILD,
    backbone_rate=0.1,
    epochs=20,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One model of the table.

    Attributes:
        label: in the table.
        model: HEAD/BACKBONE.
        head: options of the head.
        attention: put into the backbone, and its options.
        training: of the row.
    """

    label: str
    model: str
    head: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    attention: Mapping[str, Any] | None = None
    training: Training = Training()


#: A quarter of the published widths, so that the backbone is most of the work.
_NARROW = {"width": 64, "head_width": 32}
ROWS = {
    "cas_vit_xs": Row("Semantic FPN, CAS-ViT-XS", "semantic_fpn/cas_vit_xs", _NARROW),
    "cas_vit_xs_even": Row(
        "Semantic FPN, CAS-ViT-XS, no class weights",
        "semantic_fpn/cas_vit_xs",
        _NARROW,
        training=Training(class_weights="none"),
    ),
    "cas_vit_s": Row("Semantic FPN, CAS-ViT-S", "semantic_fpn/cas_vit_s", _NARROW),
    "qt_vit_1": Row("Semantic FPN, QT-ViT-1", "semantic_fpn/qt_vit_1", _NARROW),
    "efficientvit_head": Row("EfficientViT head, QT-ViT-1", "efficientvit_head/qt_vit_1"),
    "castling": Row(
        "Semantic FPN, Castling-DeiT-T",
        "semantic_fpn/castling_deit_tiny_patch16_224",
        _NARROW,
        CASTLING,
    ),
    "linear_angular": Row(
        "Semantic FPN, DeiT-T, linear-angular alone",
        "semantic_fpn/castling_deit_tiny_patch16_224",
        _NARROW,
        {"name": "linear_angular", "kv_scale": "tokens"},
    ),
    "softmax": Row("Semantic FPN, its softmax twin", "semantic_fpn/deit_tiny_patch16_224", _NARROW),
    "castling_fine": Row(
        "Semantic FPN, Castling-DeiT-T, enlarged images",
        "semantic_fpn/castling_deit_tiny_patch16_224",
        _NARROW,
        CASTLING,
        FINE,
    ),
    "softmax_fine": Row(
        "Semantic FPN, its softmax twin, enlarged images",
        "semantic_fpn/deit_tiny_patch16_224",
        _NARROW,
        training=FINE,
    ),
}
#: What ``--start`` may be, and how its rows are called.
STARTS = {
    "none": "from scratch",
    "imagenette128": "pre-trained on imagenette128",
    "camvid": "pre-trained on CamVid's images",
    "features": "features learned on imagenette128",
    "public": "public softmax ViT-Ti",
}


def recipe_of(row: Row, data: str, epochs: int, seed: int, checkpoint: str) -> Any:
    """The recipe of CamVid with the model of a row."""
    values = yaml.safe_load((RECIPES / "camvid.yaml").read_text())
    values["model"] = {"name": row.model, "head": dict(row.head), "checkpoint": checkpoint}
    if row.attention:
        values["model"]["attention"] = dict(row.attention)
    training = row.training
    values["task"] |= {
        "class_weights": training.class_weights,
        "augment": {"scales": [training.evaluated_at]},
    }
    values["data"]["source"] = data
    values["data"]["transform"] |= {
        "image_size": list(training.crop),
        "scale": list(training.scale),
    }
    if training.backbone_rate != 1:
        values["optim"]["lr_scale"] = {"backbone.*": training.backbone_rate}
    values["save"] |= {"validate_epochs": 10}
    values["hardware"] = {"channels_last": True}
    if checkpoint.endswith(".safetensors"):  # says nothing of the images it was trained on
        values["data"]["transform"] |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    return recipe_from_dict(values | {"epochs": training.epochs or epochs, "seed": seed})


def start_of(row: Row, options: argparse.Namespace) -> Any:
    """The recipe that trains the backbone of a row first."""
    own = options.start == "camvid"
    return pretraining_recipe(
        row.model.partition("/")[2],
        row.attention,
        options.data if own else options.images,
        epochs=options.start_epochs,
        size=row.training.crop if own else (128, 128),
        seed=options.seed,
        teacher=options.teacher if options.start == "features" else "",
    )


def table(study: Mapping[str, Any]) -> str:
    """The study as a Markdown table."""
    lines = [
        "| segmenter | start | epochs | seed | parameters | mIoU | mean accuracy | pixel accuracy "
        "| after the switch: mIoU | gap | agreement | eager ms | ONNX Runtime ms | OpenVINO ms |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in study["rows"].values():
        test, switched = row["test"], row.get("switched_test")
        after = ["–"] * 3
        if switched:
            certificate = row["switch"]
            after = [
                f"{switched['mIoU']:.1f}",
                f"{certificate['max_gap']:.1e}",
                f"{100 * certificate['agreement']:.2f} %",
            ]
        speed = [f"{v:.0f}" for v in row.get("milliseconds", {}).values()] or ["–"] * 3
        cells = [
            row["label"],
            row["start"] + (f", {row['start_epochs']} epochs" if row["start_epochs"] else ""),
            str(row["epochs"]),
            str(row["seed"]),
            f"{row['parameters']:,}",
            *(f"{test[key]:.1f}" for key in ("mIoU", "mAcc", "pAcc")),
            *after,
            *speed,
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Train the rows that are not finished, then write tables and pictures."""
    parser = study_parser(__doc__, NAME, "camvid.zip", list(ROWS), epochs=40)
    add_dense_options(parser, draw=[10, 120, 200])
    parser.add_argument("--start", choices=list(STARTS), default="none")
    parser.add_argument("--images", default="", help="imagenette128.zip, for starts on it")
    parser.add_argument("--teacher", default="", help="weights of tf_efficientnet_lite0")
    parser.add_argument("--weights", default="", help="of the public ViT-Ti")
    parser.add_argument("--start_epochs", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    folders = {}
    for name in options.rows:
        key = f"{name}-{options.start}-seed{options.seed}"
        folders[key] = folder = options.runs / key
        if options.collect:
            continue
        row, start = ROWS[name], ""
        if options.start == "public":
            start = options.weights
        elif options.start != "none":
            recipe = start_of(row, options)
            start = str(options.runs / f"{key}-start")
            print(key, train(recipe, Path(start), progress=False).metrics, flush=True)
        recipe = recipe_of(row, options.data, options.epochs, options.seed, start)
        print(key, train(recipe, folder, progress=False).metrics, flush=True)
    path = options.results / f"{NAME}.json"
    study = read_study(
        path, f"python benchmarks/{NAME}.py --data camvid.zip --epochs {options.epochs}"
    )
    done = {key: folder for key, folder in folders.items() if read_result(folder) is not None}
    for key, folder in done.items():
        study["rows"][key] = study["rows"].get(key, {}) | {
            "label": ROWS[key.partition("-")[0]].label,
            "start": STARTS[options.start],
            "start_epochs": 0 if options.start in {"none", "public"} else options.start_epochs,
            **figures_of_run(folder),
        }
        if options.draw:
            pictures = drawn_masks(Predictor(folder), source_of_run(folder), "test", options.draw)
            save_sheet(pictures, 1, options.pictures / f"camvid_{key}.jpg", size=(900, 420))
    if options.time:
        add_times(study, whole_times(done, options.time))
    write_study(path, study, keys_of(study, list(ROWS), list(STARTS)), table)


if __name__ == "__main__":
    main()
