"""What the sections of the page of measured speeds are written with: tables, rows, figures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from castling.profiling.results import short

#: A measurement, as its file has it.
Row = dict[str, Any]


def facts(machine: Mapping[str, Any]) -> str:
    """The machine of a measurement in one line."""
    return "Measured on " + ", ".join(f"{key} {value}" for key, value in machine.items()) + "."


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, an empty one behind."""
    return [
        "| " + " | ".join(head) + " |",
        "|---" * len(head) + "|",
        *("| " + " | ".join(row) + " |" for row in rows),
        "",
    ]


def made_by(name: str, result: Mapping[str, Any]) -> str:
    """The command, the file and the machine of a measurement."""
    command = result.get("command") or "castling in Python"
    return (
        f"`{command}` → [{name}.json](../benchmarks/results/{name}.json). "
        f"{facts(result['machine'])}\n"
    )


def timed(result: Mapping[str, Any]) -> list[Row]:
    """What passed its gate."""
    return [row for row in result["measurements"] if row["milliseconds"] is not None]


def best_paths(rows: list[Row]) -> list[Row]:
    """Of each kernel and setting the path that castling takes by itself: the first measured."""
    first: dict[tuple[Any, ...], Row] = {}
    for row in rows:
        if row["path"] not in ("sdpa", "reference"):
            first.setdefault((row["kernel"], *shape_of(row), row["tokens"]), row)
    return list(first.values())


def shape_of(row: Row) -> tuple[Any, ...]:
    """Of a kernel's measurement: all of its setting but the tokens."""
    return row["batch"], row["heads"], row["dim"], row["dtype"]


def milliseconds(row: Row) -> str:
    """The median, its quartiles in brackets."""
    return f"{short(row['milliseconds'])} ({short(row['low'])}–{short(row['high'])})"


def number(value: float | None) -> str:
    """One decimal; a dash for None."""
    return "–" if value is None else f"{value:.1f}"


def plain(value: Any) -> str:
    """A cell made of any value."""
    if isinstance(value, float):
        return short(value) if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"
    return "–" if value is None else str(value).replace("|", "/")
