"""``report.html`` of a training run: what it is, how good, how it came about, what to do next.

Only what lies in the run's folder is read, so the page can be written again at any time, and for
runs of earlier versions; sections whose files are missing say so.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from castling.profiling import report
from castling.profiling.page import (
    Page,
    cards,
    code,
    details,
    figures,
    gallery,
    matrix,
    paragraph,
    table,
)
from castling.profiling.plots import lines
from castling.profiling.run_curves import add_curves
from castling.profiling.run_facts import RunFacts, read_run
from castling.tasks.records import PREDICTIONS, read_records
from castling.tasks.reporting import ReportPart, ReportPlot, ReportTable
from castling.tasks.result import TrainResult, metric_label
from castling.utils.text import first_line

#: Beyond this many classes their names are folded.
_SHOWN_CLASSES = 30

#: Option → (value, default); the default is None where there is none.
Changes = Mapping[str, tuple[Any, Any]]


def write_run_report(run_dir: str | os.PathLike[str], changes: Changes | None = None) -> Path:
    """Write ``report.html`` into the folder of a finished run.

    Args:
        run_dir: the folder.
        changes: options of the recipe that are not at their defaults; shown first. None shows the
            recipe alone.

    Returns:
        Its path.

    Raises:
        FileNotFoundError: the run is not finished.
    """
    run = read_run(run_dir)
    page = report.new_page(f"castling run {run.folder.name}", "", headline(run))
    _add_summary(page, run)
    add_curves(page, run)
    _add_predictions(page, run)
    report.add_switch(page, run.result)
    _add_speed(page, run)
    report.add_trajectories(page, run.folder)
    _add_recipe(page, run, changes)
    _add_data(page, run)
    _add_commands(page, run)
    return page.write(run.folder / "report.html")


def headline(run: RunFacts) -> str:
    """The run in a sentence: model, data, result on which images, MACs."""
    result = run.result
    switched = bool(result.switched_metrics)
    name = run.card.name if run.card else (run.recipe.get("model") or {}).get("name", "A model")
    attention = (run.card.attention or {}).get("name") if run.card else None
    with_it = f" with {attention} attention" if attention else ""
    words = [f"{name}{with_it}, trained on {run.data}"]
    if result.images:
        of_classes = f" of {result.classes} classes" if result.classes else ""
        words.append(f" ({result.images['train']:,} images{of_classes})")
    value = report.headline_value(result, run.split, switched=switched)
    words.append(f", reaches {metric_label(result.headline)} {value}")
    if result.images:
        kind = (
            "test images" if run.split == "test" else "validation images (no others were held out)"
        )
        words.append(f" on {result.images[run.split]:,} {kind}")
    if switched:
        words.append(f" after the switch ({report.headline_value(result, run.split)} before)")
    elif result.switch_refused:
        words.append("; the switch was refused")
    # No time: the switch took it while the machine may have been busy; its section says so.
    if run.macs is not None:
        words.append(f". It costs {_millions(run.macs)} MACs per image")
    return "".join(words) + "."


def _add_summary(page: Page, run: RunFacts) -> None:
    result = run.result
    facts = [(f"{result.parameters:,}", "parameters")]
    if run.macs is not None:
        facts.append((_millions(run.macs), "multiply-accumulates per image"))
    facts += [(f"{result.steps:,}", "optimiser steps"), (_duration(result.seconds), "training")]
    rows = []
    names = [name for name in result.metrics if name.startswith("val_")]
    for split in ("val", "test"):
        if split == "test" and run.split == "val":
            continue
        for which, metrics in (("trained", result.metrics), ("switched", result.switched_metrics)):
            if not metrics:
                continue
            cells = []
            for name in names:
                own = name.removeprefix("val_")
                cells.append(result.text_of(own, metrics.get(f"{split}_{own}")))
            images = str(result.images.get(split, "–"))
            kind = {"val": "validation", "test": "test"}[split]
            rows.append([f"{kind}, {which}", *cells, images])
    head = ["images", *(metric_label(name.removeprefix("val_")) for name in names), "number"]
    notes = [text for text in (_which_weights(result), result.stopped_early) if text]
    note = "".join(f"{text[:1].upper()}{text[1:]}. " for text in notes).strip()
    page.add("Result", cards(facts), table(head, rows), note=note)


def _which_weights(result: TrainResult) -> str:
    """Which weights the figures are of; empty where the last ones are the best."""
    if not result.other_dir:
        return ""
    what = f"best evaluation{result.best_since} ({result.describe_best()})"
    used, other = ("last step", what) if result.use == "last" else (what, "last step")
    return f"weights of the {used}; those of the {other} are in {Path(result.other_dir).name}/"


def _add_predictions(page: Page, run: RunFacts) -> None:
    records = read_records(run.folder)
    if not records or run.task is None:
        page.add(
            "Predictions",
            note=f"This run has no {PREDICTIONS}: it was trained by an earlier version, or its "
            "task records none. castling evaluate --per_class measures its classes.",
        )
        return
    try:
        parts = run.task.report_parts(records)
    except (ValueError, KeyError) as error:
        page.add("Predictions", note=f"{PREDICTIONS} cannot be shown: {first_line(error)}.")
        return
    for part in parts:
        page.add(part.title, _block(part, run.folder), note=part.note)


def _block(part: ReportPart, folder: Path) -> str:
    if isinstance(part, ReportTable):
        if part.shades:
            return matrix(part.head, part.rows, part.shades)
        return table(part.head, part.rows)
    if isinstance(part, ReportPlot):
        return figures([(lines(part.curves, x=part.x, y=part.y, markers=False), "")])
    return gallery(
        (
            (
                folder / example.file,
                example.text,
                # The whole name stands in predictions.csv.
                f"{example.detail} · {'/'.join(Path(example.name).parts[-2:])}",
                example.right,
            )
            for example in part.examples
            if (folder / example.file).is_file()
        ),
        large=part.large,
    )


def _add_speed(page: Page, run: RunFacts) -> None:
    """How fast the evaluation was; nothing for runs of versions that did not write that down."""
    result = run.result
    if not result.images_per_second:
        return
    facts = [(_rate(result.images_per_second), "images per second, as trained")]
    if result.switched_images_per_second:
        facts.append((_rate(result.switched_images_per_second), "images per second, switched"))
    page.add(
        "Speed",
        cards(facts),
        note=f"Evaluation of the {run.split} images in the batches of this run, with reading them "
        "and everything that the task computes, while the machine may have been busy. castling "
        "bench models measures the model alone.",
    )


def _rate(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def _add_recipe(page: Page, run: RunFacts, changes: Changes | None) -> None:
    if not run.recipe:
        page.add("Recipe", note="recipe.yaml is missing.")
        return
    whole = details(
        "whole recipe", code(yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True))
    )
    if changes is None:
        page.add("Recipe", whole)
        return
    rows = [[name, _shown(value), _shown(default)] for name, (value, default) in changes.items()]
    page.add(
        "Recipe",
        details(
            f"{len(rows)} options that are not at their defaults",
            table(["option", "value", "default"], rows, fold_after=1000),
        ),
        whole,
    )


def _add_data(page: Page, run: RunFacts) -> None:
    blocks = []
    if run.result.images:
        kinds = {"train": "training", "val": "validation", "test": "test"}
        counts = ", ".join(f"{count:,} {kinds[s]}" for s, count in run.result.images.items())
        blocks.append(paragraph(f"{run.data}: {counts} images."))
    if run.card is not None and run.card.classes:
        names = paragraph(", ".join(run.card.classes))
        count = len(run.card.classes)
        blocks.append(
            details(f"{count} classes", names)
            if count > _SHOWN_CLASSES
            else paragraph(f"{count} classes: {', '.join(run.card.classes)}.")
        )
    page.add("Data", *blocks)


def _add_commands(page: Page, run: RunFacts) -> None:
    where = shlex.quote(str(run.folder))
    commands = [
        f"castling evaluate {where}",
        f"castling predict {where} photo.jpg 'photos/*.jpg'",
    ]
    if run.task is not None and not run.task.switches and run.card is not None:
        backbone = shlex.quote(run.card.name.rpartition("/")[2])
        commands.insert(
            0, f"castling train --model.name {backbone} --model.checkpoint {where} --data.source …"
        )
    elif run.result.switch_refused:
        commands.append(f"castling switch {where} --force")
    elif _branches_left(run):
        commands.append(f"castling switch {where}")
    commands += [
        f"castling export {where} {shlex.quote(str(run.folder / 'model.onnx'))}",
        f"castling compare {where} runs/another",
    ]
    page.add("Next", code("\n".join(commands)))


def _branches_left(run: RunFacts) -> bool:
    """Whether the model in use still has auxiliary branches."""
    auxiliary = ((run.card.attention if run.card else None) or {}).get("auxiliary")
    return bool(auxiliary) and not run.result.switched_metrics


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _shown(value: Any) -> str:
    return "–" if value is None or value == "" else str(value)
