"""Conversions of pretrained models: their part of the page of results."""

from __future__ import annotations

from pathlib import Path

from results_detection import read_study


def conversion_section(results: Path) -> list[str]:
    """A public ViT-Ti turned linear, by every attention that was tried."""
    study = read_study(results, "study_conversion")
    if study is None:
        return []
    config = study["config"]
    return [
        "## A public ViT-Ti turned linear\n",
        f"`{study['command']}` → "
        "[study_conversion.json](../benchmarks/results/study_conversion.json). The teacher is a "
        "ViT-Ti/16 fine-tuned on Tiny-ImageNet-200; `castling.convert` replaces the softmax of all "
        "layers but those named, and learns from 12,000 training images at 224 px, without labels: "
        f"{config['closed_form_images']} in closed form, {config['layer_views']:,} views layer by "
        f"layer, {config['model_views']:,} end to end. Layer errors, and agreement in percent, are "
        f"of {config['held_out']} validation images, top-1 of evenly spread ones, as the command "
        f"says. {study['machine']}, one thread, other work beside.\n",
        (results / "study_conversion.md").read_text(encoding="utf-8"),
        (results / "study_conversion_remarks.md").read_text(encoding="utf-8"),
    ]
