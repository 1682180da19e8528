"""A public softmax ViT turned linear by ``castling.convert``: every attention on one small budget.

The teacher is a ViT-Ti/16 fine-tuned on Tiny-ImageNet-200. Each row replaces the softmax of all its
layers, or of those that ``--keep`` does not name, and learns from the training images without their
labels; the figures are of validation images that no stage saw. Writes
``results/study_conversion.json`` and ``.md``; rows that earlier calls wrote with the same budget
stay. Half an hour a row on one core at the default budget.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode, v2

import castling
from castling.attention import AttentionConfig
from castling.conversion import ConversionConfig, convert
from castling.data import open_source
from castling.data.sources.folder import FolderConfig
from castling.profiling.machine import machine_facts
from studies import HERE, read_study, write_study

NAME = "study_conversion"
TAYLOR = castling.QuadraticTaylor(form="exact", qk_norm=False)
MEAN = castling.LinearAngular(constant="mean", normalize="rowsum")
ROWS: dict[str, tuple[str, AttentionConfig]] = {
    "relu": ("ReLU", castling.ReLULinear()),
    "relu_grid2d": ("ReLU, 3×3 residual", castling.ReLULinear(local="grid2d")),
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


class Images:
    """Images of Tiny-ImageNet at 224 px, as the teacher was trained on them.

    Args:
        data: zip file or folder.
        split: ``train`` or ``val``.
        train: crop and flip at random, keyed by seed and epoch; else resize to 256 and crop.
        count: of images, evenly spread; 0 takes all.
    """

    def __init__(self, data: str, split: str, *, train: bool, count: int, seed: int = 0) -> None:
        self.source = open_source(FolderConfig(path=data))
        self.split, self.train, self.seed, self.epoch = split, train, seed, 0
        total = self.source.info.splits[split]
        self.order = torch.arange(total)
        if count:
            self.order = self.order[:: max(total // count, 1)][:count]
        crop = (
            [v2.RandomResizedCrop(224, (0.35, 1.0), interpolation=InterpolationMode.BICUBIC)]
            if train
            else [v2.Resize(256, InterpolationMode.BICUBIC), v2.CenterCrop(224)]
        )
        flip = [v2.RandomHorizontalFlip()] if train else []
        norm = [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.5] * 3)]
        self.steps = v2.Compose([*crop, *flip, *norm])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of 32 with labels; a training split in a new order each time."""
        order = self.order
        if self.train:
            generator = torch.Generator().manual_seed(self.seed * 1000 + self.epoch)
            torch.manual_seed(self.seed * 1000 + self.epoch)
            order = order[torch.randperm(len(order), generator=generator)]
            self.epoch += 1
        for indices in order.split(32):
            samples = [self.source.sample(self.split, int(i)) for i in indices]
            labels = torch.stack([torch.as_tensor(s.target["label"]) for s in samples])
            yield torch.stack([self.steps(s.image) for s in samples]), labels


def load_teacher(weights: str) -> nn.Module:
    """The public ViT-Ti."""
    model = timm.create_model("vit_tiny_patch16_224", num_classes=200)
    castling.load_checkpoint(model, weights)
    return model.eval()


def scores(model: nn.Module, images: Images) -> tuple[Tensor, Tensor]:
    """Chosen classes and labels of all images."""
    chosen, labels = [], []
    with torch.inference_mode():
        for batch, label in images:
            chosen.append(model(batch).argmax(dim=1))
            labels.append(label)
    return torch.cat(chosen), torch.cat(labels)


def row_of(
    options: argparse.Namespace, name: str, teacher: nn.Module, config: ConversionConfig
) -> dict[str, Any]:
    """One attention converted; figures after every stage, accuracy at the end."""
    label, attention = ROWS[name]
    torch.manual_seed(options.seed)
    layers = [f"blocks.{i}.attn" for i in range(12) if i not in options.keep]
    start = time.perf_counter()
    # Batches held out for the report come from the validation images: the training images are
    # drawn in a new order each time.
    student, report = convert(
        teacher,
        _Behind(
            Images(options.data, "val", train=False, count=config.held_out),
            Images(options.data, "train", train=True, count=0, seed=options.seed),
        ),
        attention,
        layers,
        config,
    )
    seconds = time.perf_counter() - start
    own, labels = scores(student, options.test)
    chosen, _ = options.teacher_scores
    print(report, flush=True)
    return {
        "label": label,
        "softmax_layers": sorted(options.keep),
        "seed": options.seed,
        "seconds": round(seconds),
        "top1": 100 * float((own == labels).float().mean()),
        "agreement": 100 * float((own == chosen).float().mean()),
        "teacher_top1": 100 * float((chosen == labels).float().mean()),
        "stages": report.to_dict()["stages"],
    }


class _Behind:
    """Validation images first, once; training images after them, for ever."""

    def __init__(self, first: Images, then: Images) -> None:
        self.first, self.then = first, then

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield from self.first
        while True:
            yield from self.then


def table(study: Mapping[str, Any]) -> str:
    """The study as a Markdown table."""
    stages = ("replaced", "closed form", "layer by layer", "end to end")
    errors = [f"layer error: {stage}" for stage in stages[:3]]
    agreements = [f"agreement: {stage}" for stage in stages]
    head = ["attention", "softmax layers", "seed", *errors, *agreements]
    head += ["top-1", "of the teacher's", "minutes"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in study["rows"].values():
        found = {stage["stage"]: stage for stage in row["stages"]}
        kept = ", ".join(map(str, row["softmax_layers"])) or "none"
        cells = [
            *(row["label"], kept, str(row["seed"])),
            *(
                f"{_mean(found[name]['layer_errors']):.3f}" if name in found else "–"
                for name in stages[:3]
            ),
            *(f"{100 * found[name]['agreement']:.1f}" if name in found else "–" for name in stages),
            f"{row['top1']:.1f}",
            f"{100 * row['top1'] / row['teacher_top1']:.1f} %",
            f"{row['seconds'] / 60:.0f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / len(values)


def main() -> None:
    """Convert the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="tinyimagenet200.zip or a folder of it")
    parser.add_argument("--weights", required=True, help="of the teacher")
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--keep", type=int, nargs="*", default=[], help="layers left softmax")
    parser.add_argument("--closed_form_images", type=int, default=256)
    parser.add_argument("--layer_views", type=int, default=6000)
    parser.add_argument("--model_views", type=int, default=6000)
    parser.add_argument("--held_out", type=int, default=256)
    parser.add_argument("--test", type=int, default=1000, help="validation images for top-1")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=HERE / "results")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = ConversionConfig(
        closed_form_images=options.closed_form_images,
        layer_views=options.layer_views,
        model_views=options.model_views,
        held_out=options.held_out,
    )
    path = options.results / f"{NAME}.json"
    study = read_study(
        path,
        f"python benchmarks/{NAME}.py --data tinyimagenet200.zip --weights "
        "vit_tiny_patch16_224.tinyimagenet200.safetensors "
        f"--closed_form_images {config.closed_form_images} --layer_views {config.layer_views} "
        f"--model_views {config.model_views} --test {options.test}",
    )
    study["config"] = dataclasses.asdict(config)
    study["machine"] = machine_facts(torch.device("cpu"))["device"]
    teacher = load_teacher(options.weights)
    options.test = Images(options.data, "val", train=False, count=options.test)
    options.teacher_scores = scores(teacher, options.test)
    for name in options.rows:
        kept = "-".join(map(str, sorted(options.keep))) or "none"
        key = f"{name}-{kept}-seed{options.seed}"
        study["rows"][key] = row_of(options, name, teacher, config)
        order = sorted(study["rows"], key=lambda k: list(ROWS).index(k.partition("-")[0]))
        write_study(path, study, order, table)


if __name__ == "__main__":
    main()
