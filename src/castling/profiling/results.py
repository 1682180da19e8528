"""What both benchmarks say alike: tables, crossovers, files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from castling.profiling.plots import Plot
from castling.utils.files import write_bytes, write_csv, write_json


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What both benchmarks find out of one candidate at one setting.

    Attributes:
        milliseconds: median time of a call; None where ``error`` says why.
        low: lower quartile, milliseconds.
        high: upper quartile, milliseconds.
        relative_rms: error of the output against what it should be; None where nothing is known.
        peak_megabytes: tensors alive at one time beyond weights and input, 10⁶ bytes; None where
            operators cannot be followed.
        resident_megabytes: growth of the process in a call, scratch memory included; None off
            Linux.
        error: why there is no time; empty otherwise.
    """

    milliseconds: float | None = None
    low: float | None = None
    high: float | None = None
    relative_rms: float | None = None
    peak_megabytes: float | None = None
    resident_megabytes: float | None = None
    error: str = ""

    @property
    def label(self) -> str:
        """The candidate's name in tables and legends."""
        raise NotImplementedError

    @property
    def size(self) -> float:
        """Where on the axis of sizes it was measured: tokens, or the image's side in pixels."""
        raise NotImplementedError

    @property
    def point(self) -> str:
        """The whole setting in words."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values: first the candidate and its setting, then what was found."""
        fields = sorted(dataclasses.fields(self), key=lambda field: bool(field.kw_only))
        return {field.name: getattr(self, field.name) for field in fields}


Row = TypeVar("Row", bound=Measurement)


@dataclass(frozen=True)
class BenchResult(Generic[Row]):
    """All measurements and where they were taken.

    Attributes:
        measurements: by setting, then by candidate.
        machine: device, threads, versions.
        command: that measured it; empty where Python did.
    """

    measurements: tuple[Row, ...]
    machine: dict[str, Any]
    command: str = field(default="", kw_only=True)

    #: Column heads of the table; the first two are flush left.
    head: ClassVar[tuple[str, ...]] = ()
    #: Label of the axis of sizes.
    axis: ClassVar[str] = ""
    #: What ``crossovers`` are against.
    baseline: ClassVar[str] = ""
    #: What the columns mean, below the table.
    legend: ClassVar[str] = ""

    def cells(self, row: Row) -> tuple[str, ...]:
        """A row of the table, as many as ``head``."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """Sentences below the table."""
        return [
            crossover_remark(label, self.baseline, size)
            for label, size in self.crossovers().items()
        ]

    def plot(self) -> Plot:
        """The picture of it all."""
        raise NotImplementedError

    def crossovers(self) -> dict[str, int | None]:
        """By label the size from which on it beats its baseline; None where at none of those."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [row.to_dict() for row in self.measurements]
        return {**asdict(self), "measurements": rows, "crossovers": self.crossovers()}

    def table(self) -> str:
        """The measurements as aligned text, the machine above."""
        lines = [f"{key}: {value}" for key, value in self.machine.items()]
        timed = [row for row in self.measurements if not row.error]
        lines += aligned(self.head, [self.cells(row) for row in timed])
        lines += [
            f"{row.label}, {row.point}: {row.error}" for row in self.measurements if row.error
        ]
        if timed:
            lines += [*self.remarks(), self.legend]
        return "\n".join(lines)

    def write_json(self, path: str | os.PathLike[str]) -> None:
        """Everything, for programs."""
        write_json(path, self.to_dict())

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """The measurements, one line each."""
        rows = [row.to_dict() for row in self.measurements]
        write_csv(path, list(rows[0]), rows)

    def write_plot(self, path: str | os.PathLike[str]) -> None:
        """The picture, as PNG."""
        write_bytes(path, self.plot().png())


def aligned(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of text in columns; the first two are flush left, the others right."""
    if not rows:
        return []
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def short(value: float | None, digits: int = 3) -> str:
    """``value`` with so many significant digits, never in powers of ten; a dash for None."""
    if value is None:
        return "-"
    if value == 0 or abs(value) >= 10 ** (digits - 1):
        return f"{value:.0f}"
    rounded = float(f"{value:.{digits}g}")
    return f"{rounded:.10f}".rstrip("0").rstrip(".")


def shown(value: float | None, form: str) -> str:
    """``value`` in a format such as ``".1f"``; a dash for None."""
    return "-" if value is None else format(value, form)


def spread(row: Measurement) -> str:
    """The quartiles of a row."""
    return "-" if row.low is None else f"{short(row.low)}–{short(row.high)}"


def ratio(value: float | None) -> str:
    """A ratio with its sign; a dash for None."""
    return "-" if value is None else f"{value:.2f}×" if value < 10 else f"{short(value)}×"


def percent(value: float | None) -> str:
    """A share in [0, 1]; a dash for None."""
    return "-" if value is None else f"{100 * value:.0f}%"


def crossover(mine: Mapping[int, float], theirs: Mapping[int, float]) -> int | None:
    """Smallest size from which on ``mine`` is faster at every size that both were measured at.

    Args:
        mine: size → milliseconds.
        theirs: the baseline's.
    """
    found = None
    for size in sorted(mine.keys() & theirs.keys(), reverse=True):
        if mine[size] >= theirs[size]:
            break
        found = size
    return found


def crossover_remark(label: str, baseline: str, tokens: int | None) -> str:
    """A sentence on a crossover; None means that there is none."""
    where = f"from {tokens} tokens on" if tokens else "at none of these sizes"
    return f"{label}: faster than {baseline} {where}"
