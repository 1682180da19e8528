"""Conversions of pretrained models: their part of the page of results."""

from __future__ import annotations

from pathlib import Path

from results_detection import read_study


def conversion_section(results: Path) -> list[str]:
    """A public ViT-Ti turned linear, by every attention that was tried."""
    study = read_study(results, "study_conversion")
    if study is None:
        return []
    machines = ", ".join(sorted({row["machine"] for row in study["rows"].values()}))
    return [
        "## A public ViT-Ti turned linear\n",
        f"`{study['command']}` → "
        "[study_conversion.json](../benchmarks/results/study_conversion.json). The teacher is a "
        "ViT-Ti/16 fine-tuned on Tiny-ImageNet-200; `castling convert` replaces the softmax of all "
        "layers but those named, and learns from 12,000 training images at 224 px, without labels. "
        "Views are those of all stages; a view is one image seen once in one step. Layer errors, "
        "and agreement after each stage in percent, are of 256 validation images; top-1 and the "
        "last agreement of so many validation images as the table says. "
        f"{machines}, one thread, other work beside.\n",
        (results / "study_conversion.md").read_text(encoding="utf-8"),
        (results / "study_conversion_remarks.md").read_text(encoding="utf-8"),
        *_precisions_section(results),
        *_dense_section(results),
    ]


def _precisions_section(results: Path) -> list[str]:
    """The converted model and its teacher in fp16 and int8."""
    study = read_study(results, "study_precisions")
    if study is None:
        return []
    machines = ", ".join(sorted({row["machine"] for row in study["rows"].values()}))
    return [
        "### The same models in fp16 and int8\n",
        f"`{study['command']}` → "
        "[study_precisions.json](../benchmarks/results/study_precisions.json). Agreement is the "
        "share of validation images with the best class that PyTorch finds in float32; int8 is "
        "calibrated with as many training images. `teacher` is the softmax ViT-Ti, the others are "
        f"two of the converted. {machines}, one thread, other work beside.\n",
        (results / "study_precisions.md").read_text(encoding="utf-8"),
        (results / "study_precisions_remarks.md").read_text(encoding="utf-8"),
    ]


def _dense_section(results: Path) -> list[str]:
    """Dense models with their heads kept."""
    study = read_study(results, "study_conversion_dense")
    if study is None:
        return []
    machines = ", ".join(sorted({row["machine"] for row in study["rows"].values()}))
    return [
        "### Segmenters, their heads kept\n",
        f"`{study['command']}` → "
        "[study_conversion_dense.json](../benchmarks/results/study_conversion_dense.json). Models "
        "of the study on CamVid, converted on its training images without labels; the cosine is "
        "that of the backbone's feature maps on validation images, before and after are of test. "
        f"{machines}, one thread, other work beside.\n",
        (results / "study_conversion_dense.md").read_text(encoding="utf-8"),
        (results / "study_conversion_dense_remarks.md").read_text(encoding="utf-8"),
    ]
