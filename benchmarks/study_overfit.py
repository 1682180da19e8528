"""Whether a detector with masks can learn a few images of COCO by heart.

Trains a small Mask R-CNN on 20 images without augmentation and evaluates it on the same images:
boxes, masks and classes of every object, tiny ones and crowds included, must come out right
(AP50 of 90 % or more). A loss, a target or an evaluation that is a little wrong does not get there.
Writes ``results/study_overfit.json`` and a picture of drawn predictions,
without the photographs, which are other people's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from castling.deploy import Predictor, evaluate, model_folder
from castling.profiling.machine import machine_facts
from castling.train import open_data, recipe_from_dict, train
from castling.utils.files import write_json
from drawn import drawn_boxes, save_sheet

HERE = Path(__file__).parent


def recipe_of(data: str, images: int, side: int, epochs: int) -> Any:
    """Plain scaling, a constant view of every image, weights averaged over the last steps."""
    return recipe_from_dict(
        {
            "task": "detection",
            "model": {
                "name": "mask_rcnn/cas_vit_xs",
                "head": {
                    "width": 64,
                    "hidden": 256,
                    "samples": 128,
                    "training_proposals": 500,
                    "proposals": 300,
                    "anchor_scale": 3.0,
                },
            },
            "data": {
                "source": data,
                "split": {"subset": images, "val_subset": 2},
                "transform": {
                    "image_size": side,
                    "horizontal_flip": 0.0,
                    "crop": 0.0,
                    "photometric": 0.0,
                },
                "loader": {"batch_size": 4},
            },
            "epochs": epochs,
            "optim": {"lr": 1e-3, "weight_decay": 0.0},
            "schedule": {"warmup_epochs": 5},
            "ema": {"decay": 0.98},
            "clip": {"mode": "norm", "value": 10.0},
            "hardware": {"channels_last": True},
        }
    )


def main() -> None:
    """Train (a finished run is kept, an interrupted one resumed), evaluate, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="COCO with masks: a folder or a zip file")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--side", type=int, default=320)
    parser.add_argument("--epochs", type=int, default=180)
    parser.add_argument("--run", type=Path, default=Path("runs/study_overfit"))
    parser.add_argument("--results", type=Path, default=HERE / "results")
    parser.add_argument("--pictures", type=Path, default=HERE.parent / "docs" / "images")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = recipe_of(options.data, options.images, options.side, options.epochs)
    result = train(recipe, options.run, progress=False)
    found = evaluate(model_folder(options.run), split="train")
    study = {
        "command": "python benchmarks/study_overfit.py --data coco_mini.zip "
        f"--images {options.images} --side {options.side} --epochs {options.epochs}",
        "images": found.images,
        "train": found.metrics,
        "seconds": round(result.seconds),
        "parameters": result.parameters,
        "machine": machine_facts(torch.device("cpu")),
    }
    write_json(options.results / "study_overfit.json", study)
    print(study)
    data, _ = open_data(recipe)
    places = range(0, options.images, max(1, options.images // 6))
    chosen = [int(data.dataset("train").selection.positions[place]) for place in places][:6]
    pictures = drawn_boxes(Predictor(options.run), data.source, "train", chosen, photographs=False)
    save_sheet(pictures, 3, options.pictures / "overfit_coco_mini.jpg")


if __name__ == "__main__":
    main()
