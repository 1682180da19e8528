"""Conversions of pretrained models: their part of the page of results."""

from __future__ import annotations

from pathlib import Path

from results_detection import read_study


def conversion_section(results: Path) -> list[str]:
    """A public ViT-Ti turned linear, by every attention that was tried."""
    return [
        *_section(
            results,
            "study_conversion",
            "## A public ViT-Ti turned linear",
            "The teacher is a ViT-Ti/16 fine-tuned on Tiny-ImageNet-200; `castling convert` "
            "replaces the softmax of all layers but those named, and learns from 12,000 "
            "training images at 224 px, without labels. Views are those of all stages; a view "
            "is one image seen once in one step. Layer errors, and agreement after each stage "
            "in percent, are of 256 validation images; top-1 and the last agreement of so many "
            "validation images as the table says.",
        ),
        *_section(
            results,
            "study_precisions",
            "### The same models in fp16 and int8",
            "Agreement is the share of validation images with the best class that PyTorch finds in "
            "float32; int8 is calibrated with as many training images. `teacher` is the softmax "
            "ViT-Ti, the others are two of the converted.",
        ),
        *_section(
            results,
            "study_conversion_dense",
            "### Segmenters, their heads kept",
            "Models of the study on CamVid, converted on its training images without labels; the "
            "cosine is that of the backbone's feature maps on validation images, before and after "
            "are of test.",
        ),
    ]


def _section(results: Path, name: str, heading: str, text: str) -> list[str]:
    """Heading, command, machines, table and remarks of one study; nothing before it has run."""
    study = read_study(results, name)
    if study is None:
        return []
    machines = ", ".join(sorted({row["machine"] for row in study["rows"].values()}))
    return [
        f"{heading}\n",
        f"`{study['command']}` → [{name}.json](../benchmarks/results/{name}.json). {text} "
        f"{machines}, one thread, other work beside.\n",
        (results / f"{name}.md").read_text(encoding="utf-8"),
        (results / f"{name}_remarks.md").read_text(encoding="utf-8"),
    ]
