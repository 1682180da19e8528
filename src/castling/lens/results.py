"""What both benchmarks say alike: tables, crossovers, files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from castling.lens.plots import Plot
from castling.train.files import write_csv, write_json


class Measured(Protocol):
    """One row: a subject at one setting."""

    @property
    def milliseconds(self) -> float | None:
        """Median time of a call; None where there is none."""

    @property
    def low(self) -> float | None:
        """Lower quartile, milliseconds."""

    @property
    def high(self) -> float | None:
        """Upper quartile, milliseconds."""

    @property
    def error(self) -> str:
        """Why there is no time; empty otherwise."""

    @property
    def label(self) -> str:
        """The subject's name in tables and legends."""

    @property
    def size(self) -> float:
        """Where on the axis of sizes it was measured: tokens, or the image's side in pixels."""

    @property
    def point(self) -> str:
        """The whole setting in words."""


Row = TypeVar("Row", bound=Measured)


@dataclass(frozen=True)
class BenchResult(Generic[Row]):
    """All measurements and where they were taken.

    Attributes:
        measurements: by setting, then by subject.
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
    #: What the columns mean, below the table.
    legend: ClassVar[str] = ""

    def cells(self, row: Row) -> tuple[str, ...]:
        """A row of the table, as many as ``head``."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """Sentences below the table: crossovers."""
        raise NotImplementedError

    def plot(self) -> Plot:
        """The picture of it all."""
        raise NotImplementedError

    def crossovers(self) -> dict[str, int | None]:
        """By label the size from which on it beats its baseline; None where at none of those."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "crossovers": self.crossovers()}

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
        write_json(_prepared(path), self.to_dict())

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """The measurements, one line each."""
        rows = [asdict(row) for row in self.measurements]  # type: ignore[call-overload]
        columns = [field.name for field in dataclasses.fields(self.measurements[0])]  # type: ignore[arg-type]
        write_csv(_prepared(path), columns, rows)

    def write_plot(self, path: str | os.PathLike[str]) -> None:
        """The picture, as PNG."""
        target = _prepared(path)
        temporary = target.with_name(target.name + ".part")
        temporary.write_bytes(self.plot().png())
        os.replace(temporary, target)


def _prepared(path: str | os.PathLike[str]) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


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


def spread(row: Measured) -> str:
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
