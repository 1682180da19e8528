"""Writes what is generated from the code and the results: ``python docs/build.py``.

That is the pages listed in ``PAGES``, the pictures of measured speeds, and a CSV file beside every
JSON file of measurements. ``--check`` writes nothing and fails if a page or a CSV file is stale.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import json
import re
import sys
import tempfile
from pathlib import Path

import timm
import torch
from high_resolution_page import high_resolution_page, write_high_resolution_plots
from hosts_page import hosts_page
from option_pages import heads_page, introduction, markdown, options_of, sources_page
from performance_page import performance_page
from performance_tables import facts, write_plots, write_tables
from reference_pages import command_line_page, interfaces_page, python_page
from results_conversion import conversion_section
from results_detection import bccd_section, overfit_section
from results_segmentation import camvid_section

import castling
from castling.attention import (
    AttentionConfig,
    MaskedSoftmax,
    attention_config,
    auxiliaries,
    kernel_class,
    list_kernels,
)
from castling.surgery import strip_
from castling.train import recipe_from_dict

HERE = Path(__file__).parent
RESULTS = HERE.parent / "benchmarks" / "results"
NOTE = "<!-- Written by docs/build.py from the code; edit there. -->\n\n"


def first_sentence(text: str) -> str:
    """The first sentence of a docstring, on one line."""
    paragraph = " ".join(inspect.cleandoc(text).split("\n\n")[0].split())
    return markdown(re.split(r"(?<=[.;]) ", paragraph)[0].rstrip(".;"))


def models_page() -> str:
    """All models: parameters, multiply-accumulates, strides of their features."""
    lines = [
        "# Models\n",
        "Every model is in timm's registry: `timm.create_model(NAME)` once castling is imported. "
        "Parameters and multiply-accumulates (every matrix product counted) are of the model as "
        "used for inference: switched, 1000 classes, at its default size.\n",
        "What timm promises of its models holds for these: metadata (`pretrained_cfg`), "
        "`features_only`, gradient checkpointing, `device=` and `dtype=`, the meta device, "
        "`init_weights()` (but for MViTv2, whose host has none), `torch.fx`, in whose graphs an "
        "attention is one node. They cannot be "
        "compiled by `torch.jit.script`: use `torch.jit.trace` or `torch.export`. "
        "`castling.create_model(NAME, attention=…)` puts an attention into any model here, and "
        "into any of timm's that can be converted.\n",
        "| model | parameters (M) | MACs (G) | image | strides of `features_only` | what it is |",
        "|---|---|---|---|---|---|",
    ]
    for name in castling.list_models():
        model = timm.create_model(name, device="meta").eval()
        if auxiliaries(model):
            strip_(model)
        parameters = sum(p.numel() for p in model.parameters()) / 1e6
        size = model.pretrained_cfg["input_size"]
        gigamacs = castling.macs(model, size).total / 1e9
        strides = [info["reduction"] for info in model.feature_info]
        shown = (
            f"{strides[0]} (all {len(strides)} blocks)"
            if len(set(strides)) == 1
            else ", ".join(map(str, strides))
        )
        doc = first_sentence(timm.models.model_entrypoint(name).__doc__ or "")
        lines.append(
            f"| `{name}` | {parameters:.3f} | {gigamacs:.4f} | {size[1]}×{size[2]} | {shown} "
            f"| {doc} |"
        )
    return "\n".join(lines) + "\n"


def attentions_page() -> str:
    """All attentions and their options."""
    lines = [
        "# Attentions\n",
        "A configuration chooses three things: a **kernel** (its class), a **local residual** and "
        "an **auxiliary** branch. It goes into `castling.linearize_(model, config)`, into "
        "`timm.create_model(name, attention=config)`, or by its name into a recipe.\n",
        "Common to all:\n",
        *options_of(AttentionConfig),
        "\n## The auxiliary branch\n\n`castling.MaskedSoftmax`\n",
        introduction(MaskedSoftmax),
        "",
        *options_of(MaskedSoftmax),
    ]
    for name in castling.list_attentions():
        config = attention_config(name)
        order = "O(N)"
        if name not in list_kernels():
            order += "; for maps (B, C, h, w) only, as CAS-ViT models have them"
        elif kernel_class(config).quadratic:
            order = "O(N²)"
        lines += [f"\n## {name}\n", f"`castling.{type(config).__name__}`, {order}\n"]
        lines += [introduction(type(config)), ""]
        own = {f.name for f in dataclasses.fields(config)} - {
            f.name for f in dataclasses.fields(AttentionConfig)
        }
        lines += options_of(type(config)) if own else []
    return "\n".join(lines) + "\n"


def results_page() -> str:
    """What was measured: the files under benchmarks/results."""
    lines = ["# Results\n", "Every figure here stands in a file that the named command wrote.\n"]
    study = json.loads((RESULTS / "study_cifar10.json").read_text(encoding="utf-8"))
    recipe = recipe_from_dict(study["recipe"])
    subset, size = recipe.data.split.subset, recipe.data.transform.image_size
    lines += [
        "## What each part of Castling-ViT is worth\n",
        f"`{study['command']}` → [study_cifar10.json](../benchmarks/results/study_cifar10.json). "
        f"{subset:,} CIFAR-10 training images (a re-encoded copy, a little below the "
        f"original), {size} px, {recipe.epochs} epochs; top-1 on the 10,000 test "
        f"images in percent, mean ± standard deviation over the seeds. {facts(study['machine'])}\n",
        (RESULTS / "study_cifar10.md").read_text(encoding="utf-8"),
        (RESULTS / "study_cifar10_remarks.md").read_text(encoding="utf-8"),
        *bccd_section(RESULTS),
        *overfit_section(RESULTS),
        *camvid_section(RESULTS),
        *conversion_section(RESULTS),
    ]
    return "\n".join(lines) + "\n"


PAGES = {
    "models.md": models_page,
    "attentions.md": attentions_page,
    "hosts.md": lambda: hosts_page(RESULTS),
    "heads.md": heads_page,
    "sources.md": sources_page,
    "results.md": results_page,
    "performance.md": lambda: performance_page(RESULTS),
    "high-resolution.md": lambda: high_resolution_page(RESULTS),
    "reference/python.md": python_page,
    "reference/interfaces.md": interfaces_page,
    "reference/command-line.md": command_line_page,
}


def tables() -> dict[Path, str]:
    """The CSV files of all measurements."""
    with tempfile.TemporaryDirectory() as folder:
        write_tables(RESULTS, Path(folder))
        written = sorted(Path(folder).iterdir())
        return {RESULTS / path.name: path.read_text(encoding="utf-8") for path in written}


def main() -> int:
    """Write or check all files; the exit status is the number of stale ones."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    torch.set_grad_enabled(False)
    files = {HERE / name: NOTE + page() for name, page in PAGES.items()} | tables()
    stale = []
    for path, text in files.items():
        if check and (not path.exists() or path.read_text(encoding="utf-8") != text):
            stale.append(path.name)
        elif not check:
            path.write_text(text, encoding="utf-8")
    if not check:
        write_plots(RESULTS, HERE / "images")
        write_high_resolution_plots(RESULTS, HERE / "images")
    if stale:
        print(f"{', '.join(stale)}: stale; run python docs/build.py")
    return len(stale)


if __name__ == "__main__":
    sys.exit(main())
