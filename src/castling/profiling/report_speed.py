"""The section of a page that shows time and memory against size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from castling.profiling.formatting import short
from castling.profiling.page import Page, figures, subheading, table
from castling.profiling.plots import Plot, lines
from castling.profiling.results import BenchResult


def add_speed(page: Page, parts: Sequence[tuple[str, BenchResult[Any]]]) -> None:
    """Time and memory against size, with the table of numbers.

    Args:
        page: is added to.
        parts: (heading, measurements).
    """
    blocks = []
    for heading, result in parts:
        captions = [
            (
                _against_size(result, "milliseconds", "milliseconds per call"),
                "Median time of one call; lower is better.",
            ),
            (
                _against_size(result, "peak_megabytes", "peak activations, MB"),
                "Peak memory of activations; lower is better.",
            ),
        ]
        blocks += [subheading(heading), figures(captions), _speed_table(result)]
    machine = parts[0][1].machine if parts else {}
    facts = ", ".join(f"{key} {value}" for key, value in machine.items())
    page.add(
        "Speed against resolution",
        *blocks,
        note=f"Measured in turns, after checking the results. {facts}.",
    )


def _against_size(result: BenchResult[Any], value: str, label: str) -> Plot:
    return lines(result.curves(value), x=result.axis, y=label, log_x=True, log_y=True)


def _speed_table(result: BenchResult[Any]) -> str:
    rows = result.measurements
    sizes = sorted({row.size for row in rows})
    found = {(row.label, row.size): row for row in rows}
    crossovers = result.crossovers()
    lines = []
    for label in dict.fromkeys(row.label for row in rows):
        cells = [label]
        for size in sizes:
            row = found.get((label, size))
            cells.append(
                "–"
                if row is None or row.milliseconds is None
                # word joiners: a range is not broken
                else f"{short(row.milliseconds)} ({short(row.low)}\u2060–\u2060{short(row.high)})"
            )
        tokens = crossovers.get(label)
        said = f"{tokens} tokens" if tokens else "not here"
        lines.append([*cells, said if label in crossovers else "–"])
    unit = "px" if "pixels" in result.axis else result.axis
    head = ["ms (quartiles)", *(f"{size:g} {unit}" for size in sizes)]
    return table([*head, "beats softmax from"], lines)
