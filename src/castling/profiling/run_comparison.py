"""What distinguishes finished runs, as tables of the terminal, plain values and a page."""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from castling.profiling import report
from castling.profiling.compare_text import (
    MISSING,
    Row,
    best_value,
    images_cell,
    option_text,
    page_rows,
    speed_cell,
    switch_cell,
    text_line,
    value_at,
)
from castling.profiling.formatting import short
from castling.profiling.page import Page, figures, table
from castling.profiling.plots import Curve, Plot, lines
from castling.profiling.run_facts import RunFacts
from castling.tasks.result import metric_label
from castling.utils.text import percent as percent_of

_SPLITS = {"val": "validation", "test": "test"}
#: Where the curves are read for the terminal, as shares of the run's last epoch.
_QUARTERS = (0.25, 0.5, 0.75, 1.0)
#: Label of times that runs took at different moments.
_OWN_SPEED = "ms per image, in each run"
#: Width of the terminal's table with two runs, in characters.
_WIDTH = 80


@dataclass(frozen=True)
class Comparison:
    """What distinguishes some runs.

    Attributes:
        names: of the runs, as short as they stay distinct.
        runs: their facts.
        options: options of the recipes that differ: name → value of each run, None where it has
            none.
        curves: metric → run → (epochs, values).
        milliseconds: per image of each run, measured in turns here; empty unless asked for.
        machine: where that was; empty unless asked for.
        notes: what a reader should know, such as different data.
    """

    names: tuple[str, ...]
    runs: tuple[RunFacts, ...]
    options: dict[str, tuple[Any, ...]]
    curves: dict[str, dict[str, Curve]]
    milliseconds: tuple[float, ...] = ()
    machine: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def results(self) -> list[Row]:
        """Metrics of every split before and after the switch, size, cost."""
        rows: list[Row] = []
        metrics = dict.fromkeys(name for run in self.runs for name in run.result.metrics)
        for name in metrics:
            split, _, own = name.partition("_")
            if split == "test" and all(run.split == "val" for run in self.runs):
                continue  # a copy of the validation results
            label = f"{_SPLITS.get(split, split)} {metric_label(own)}"
            rows.append((label, self._cells(lambda run, n=name: run.result.metrics.get(n), own)))
            after = self._cells(lambda run, n=name: run.result.switched_metrics.get(n), own)
            if any(cell != MISSING for cell in after):
                rows.append((f"{label}, switched", after))
        results = [run.result for run in self.runs]
        counts = tuple(images_cell(run) for run in self.runs)
        rows += [
            ("images train/val/test", counts),
            ("parameters", tuple(f"{result.parameters:,}" for result in results)),
            (
                "MACs per image",
                tuple(
                    MISSING if run.macs is None else f"{run.macs / 1e6:,.2f} M" for run in self.runs
                ),
            ),
            ("optimiser steps", tuple(f"{result.steps:,}" for result in results)),
            ("training time, s", tuple(f"{result.seconds:,.0f}" for result in results)),
            ("weights", tuple(result.use for result in results)),
            ("switch", tuple(switch_cell(run) for run in self.runs)),
        ]
        if self.milliseconds:
            cells = tuple(short(value) for value in self.milliseconds)
            rows.append(("ms per image, measured now", cells))
        else:
            cells = tuple(speed_cell(run) for run in self.runs)
            if any(cell != MISSING for cell in cells):
                rows.append((_OWN_SPEED, cells))
        return rows

    def progress(self) -> list[Row]:
        """The curves at quarters of each run and the best value, each with its epoch.

        A quarter that no run has an epoch for, or that says what the one before it says, is left
        out.
        """
        rows: list[Row] = []
        for metric, curves in self.curves.items():
            own = [(curves.get(name), _is_percent(metric, run)) for name, run in self._pairs()]
            before: tuple[str, ...] = (MISSING,) * len(own)
            for quarter in _QUARTERS:
                cells = tuple(value_at(curve, quarter, percent) for curve, percent in own)
                if cells != before:
                    rows.append((f"{metric} at {percent_of(quarter, 0)}", cells))
                before = cells
            cells = tuple(
                best_value(curve, _is_larger_better(metric, run), percent)
                for (curve, percent), run in zip(own, self.runs, strict=True)
            )
            rows.append((f"{metric}, best of all", cells))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "runs": [
                {
                    "name": name,
                    "folder": str(run.folder),
                    "macs": run.macs,
                    "result": run.result.to_dict(),
                    "milliseconds": self.milliseconds[index] if self.milliseconds else None,
                }
                for index, (name, run) in enumerate(self._pairs())
            ],
            "options": {key: list(values) for key, values in self.options.items()},
            "curves": {
                metric: {
                    name: {"epochs": list(xs), "values": list(ys)}
                    for name, (xs, ys) in curves.items()
                }
                for metric, curves in self.curves.items()
            },
            "machine": self.machine,
            "notes": self._notes(),
        }

    def __str__(self) -> str:
        """Tables for the terminal; two runs fit 80 columns."""
        options = [
            (key, tuple(option_text(value) for value in values))
            for key, values in self.options.items()
        ]
        sections = [
            ("options that differ", options or [("none", ("",) * len(self.names))]),
            ("results", self.results()),
            ("training", self.progress()),
        ]
        every = [row for _, rows in sections for row in rows]
        columns = len(self.names)
        room = max(_WIDTH, shutil.get_terminal_size().columns) if columns > 2 else _WIDTH
        label = min(34, max(len(text) for text, _ in every))
        width = max(10, (room - label) // columns - 2)
        text = [text_line("", self.names, label, width)]
        for title, rows in sections:
            text += ["", title, *(text_line(name, cells, label, width) for name, cells in rows)]
        for note in self._notes():
            text += textwrap.wrap(f"note: {note}", room, break_on_hyphens=False)
        return "\n".join(text)

    def write_page(self, path: str | os.PathLike[str]) -> Path:
        """Write the comparison as one self-contained HTML file."""
        page = report.new_page(
            "castling compare", ", ".join(str(run.folder) for run in self.runs), self.headline()
        )
        note = " ".join(f"{note[:1].upper()}{note[1:]}." for note in self._notes())
        head = ["", *self.names]
        page.add("Results", table(head, page_rows(self.results())), note=note)
        _add_curves(page, self.curves)
        rows = [[key, *(option_text(value) for value in row)] for key, row in self.options.items()]
        page.add(
            "Recipes",
            table(["option", *self.names], rows, fold_after=1000),
            note="Options that differ." if rows else "The recipes are the same.",
        )
        if self.machine:
            facts = ", ".join(f"{key} {value}" for key, value in self.machine.items())
            page.add("Speed", note=f"Measured in turns, one image per call. {facts}.")
        return page.write(path)

    def headline(self) -> str:
        """Which run is best by the metric that sums them up."""
        first = self.runs[0].result
        if any(run.result.headline != first.headline for run in self.runs):
            return "Runs of different tasks."
        values = [_final(run) for run in self.runs]
        known = [value for value in values if value is not None]
        if len(known) < 2:
            return ""
        task = self.runs[0].task
        best = (max if task is None or task.maximize else min)(known)
        label = metric_label(first.headline)
        reached = first.text_of(first.headline, best)
        others = ", ".join(
            f"{name} {first.text_of(first.headline, value)}"
            for name, value in zip(self.names, values, strict=True)
            if value is not None and value != best
        )
        winners = " and ".join(n for n, v in zip(self.names, values, strict=True) if v == best)
        if not others:
            return f"All reach {label} {reached}."
        return f"Best by {label}: {winners}, {reached} ({others})."

    def _notes(self) -> list[str]:
        """``notes``, and what the rows shown need to be read right."""
        notes = list(self.notes)
        if any(label == _OWN_SPEED for label, _ in self.results()):
            notes.append(
                f"{_OWN_SPEED}: as measured there by the switch, at different moments; --measure "
                "compares them side by side"
            )
        since = [(name, run.result) for name, run in self._pairs() if run.result.best_since]
        if since:
            found = "; ".join(f"{name} {result.describe_best()}" for name, result in since)
            notes.append(f"best{since[0][1].best_since}: {found}")
        return notes

    def _pairs(self) -> list[tuple[str, RunFacts]]:
        return list(zip(self.names, self.runs, strict=True))

    def _cells(self, value: Any, metric: str) -> tuple[str, ...]:
        return tuple(run.result.text_of(metric, value(run)) for run in self.runs)


def _is_percent(metric: str, run: RunFacts) -> bool:
    """Whether a curve of the run is of a metric in percent."""
    name = run.result.headline
    return metric == curve_label(name) and name in run.result.percentages


def _is_larger_better(metric: str, run: RunFacts) -> bool:
    return metric == curve_label(run.result.headline) and (run.task is None or run.task.maximize)


def curve_label(headline: str) -> str:
    """What the curve of a headline metric is called."""
    return f"validation {metric_label(headline)}"


def _final(run: RunFacts) -> float | None:
    """The headline metric of the model in use."""
    metrics = run.result.switched_metrics or run.result.metrics
    return metrics.get(f"{run.split}_{run.result.headline}")


def _add_curves(page: Page, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    plots: list[tuple[Plot, str]] = [
        (lines(series, x="epoch", y=label, markers=False), f"{label}, by epoch".capitalize() + ".")
        for label, series in curves.items()
    ]
    if plots:
        page.add("Training", figures(plots))
