"""Cells and lines of a comparison of runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from castling.profiling.formatting import short
from castling.profiling.plots import Curve
from castling.profiling.run_facts import RunFacts
from castling.tasks.result import metric_text

MISSING = "–"

#: Label and one cell per run.
Row = tuple[str, tuple[str, ...]]


def images_cell(run: RunFacts) -> str:
    """Numbers of images of the three splits."""
    counts = run.result.images
    return "/".join(str(counts.get(split, "–")) for split in ("train", "val", "test"))


def switch_cell(run: RunFacts) -> str:
    """How the switch went."""
    result = run.result
    if result.switch_refused:
        return "refused"
    if not result.switch:
        return MISSING
    return "exact" if result.switch["exact"] else f"gap {result.switch['max_gap']:.1e}"


def speed_cell(run: RunFacts) -> str:
    """Milliseconds per image that the run's switch measured, and the batch."""
    switch = run.result.switch
    if not switch or run.result.switch_refused:
        return MISSING
    batch = switch["batch"][0]
    return f"{short(switch['milliseconds_after'] / batch)} (batch {batch})"


def value_at(curve: Curve | None, share: float, percent: bool) -> str:
    """The last value up to this share of the epochs, with its epoch."""
    if curve is None:
        return MISSING
    limit = share * curve[0][-1]
    points = [point for point in zip(*curve, strict=True) if point[0] <= limit + 1e-9]
    return _point(*points[-1], percent) if points else MISSING


def best_value(curve: Curve | None, larger: bool, percent: bool) -> str:
    """The best value of all epochs, with its epoch."""
    if curve is None:
        return MISSING
    best = (max if larger else min)(curve[1])
    return _point(curve[0][list(curve[1]).index(best)], best, percent)


def _point(epoch: float, value: float, percent: bool) -> str:
    return f"{metric_text(value, percent)} (epoch {epoch:g})"


def option_text(value: Any) -> str:
    """The value of an option; a dash where there is none."""
    return MISSING if value is None or value == "" else str(value)


def page_rows(rows: Sequence[Row]) -> list[list[str]]:
    """Rows as a page's table takes them."""
    return [[name, *cells] for name, cells in rows]


def text_line(name: str, cells: Sequence[str], label: int, width: int) -> str:
    """A label and right-aligned cells; too long ones lose their middle."""
    shown = "".join(f"  {_cut(cell, width):>{width}}" for cell in cells)
    return f"{_cut(name, label):{label}}{shown}".rstrip()


def _cut(text: str, width: int) -> str:
    """Text without its middle where it is too long."""
    if len(text) <= width:
        return text
    left = (width - 1) // 2
    return f"{text[:left]}…{text[len(text) - (width - 1 - left) :]}"
