"""Several finished runs side by side: recipes, curves, accuracy, size, speed."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from castling.models.card import CARD
from castling.models.saved import open_model
from castling.profiling import report
from castling.profiling.machine import machine_facts
from castling.profiling.plots import Curve
from castling.profiling.run_comparison import Comparison, curve_label
from castling.profiling.run_facts import RunFacts, read_run
from castling.utils.timing import time_alternately, timer_for


def compare_runs(folders: Sequence[str | os.PathLike[str]], *, measure: bool = False) -> Comparison:
    """Compare finished runs.

    Args:
        folders: of two or more runs.
        measure: time the models in use, in turns, one image per call on the CPU.

    Raises:
        ValueError: fewer than two folders, or one named twice.
        FileNotFoundError: a run is not finished.
    """
    paths = [Path(folder) for folder in folders]
    if len(paths) < 2:
        raise ValueError("give the folders of at least two runs")
    if len({path.resolve() for path in paths}) < len(paths):
        raise ValueError("a run is named twice: " + ", ".join(map(str, paths)))
    runs = tuple(read_run(path) for path in paths)
    names = _short_names(paths)
    flat = [_flat(run.recipe) for run in runs]
    keys = dict.fromkeys(key for values in flat for key in values)
    options = {
        key: tuple(values.get(key) for values in flat)
        for key in keys
        if any(values.get(key) != flat[0].get(key) for values in flat)
    }
    found = Comparison(names, runs, options, _curves(names, runs), notes=_notes(options, runs))
    if measure:
        found = dataclasses.replace(
            found, milliseconds=_measure(runs), machine=machine_facts(torch.device("cpu"))
        )
    return found


@torch.inference_mode()
def _measure(runs: Sequence[RunFacts]) -> tuple[float, ...]:
    calls = {}
    for index, run in enumerate(runs):
        switched = run.folder / "switched"
        model, card = open_model(switched if (switched / CARD).is_file() else run.folder)
        images = torch.randn(1, 3, *card.image_size)
        calls[index] = lambda model=model, images=images: model(images)
    timer = timer_for(torch.device("cpu"))
    times = time_alternately(calls, rounds=25, seconds=2.0 * len(runs), timer=timer)
    return tuple(times[index].milliseconds for index in range(len(runs)))


def _curves(names: Sequence[str], runs: Sequence[RunFacts]) -> dict[str, dict[str, Curve]]:
    """Validation loss and headline of each run, by epoch."""
    found: dict[str, dict[str, Curve]] = {}
    for name, run in zip(names, runs, strict=True):
        rows = report.read_table(run.folder / "metrics.csv")
        for label, column in (
            ("training loss", "train_loss"),
            ("validation loss", "val_loss"),
            (curve_label(run.result.headline), f"val_{run.result.headline}"),
        ):
            curve = report.curve(rows, column)
            if curve[0]:
                found.setdefault(label, {})[name] = curve
    return found


def _notes(options: Mapping[str, Any], runs: Sequence[RunFacts]) -> tuple[str, ...]:
    notes = []
    if any(key.startswith(("data.source.", "data.split.")) for key in options):
        notes.append("the runs used different data or splits: their metrics do not compare")
    if len({run.split for run in runs}) > 1:
        notes.append("not all runs have a test split of their own")
    return tuple(notes)


def _short_names(paths: Sequence[Path]) -> tuple[str, ...]:
    """The last parts of the folders' paths, as many as make them distinct."""
    parts = [path.resolve().parts for path in paths]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-count:]) for each in parts]
        if len(set(names)) == len(names):
            return tuple(names)
    return tuple(map(str, paths))


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        elif value != {}:
            flat[f"{prefix}{key}"] = value
    return flat
