"""What the two benchmarks have in common: measurements, tables, crossovers, files."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Generic, Self, TypeVar, cast

from castling.profiling.formatting import aligned, short
from castling.profiling.plots import Plot
from castling.utils.files import write_bytes, write_csv, write_json


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One candidate in one setting.

    Attributes:
        milliseconds: median time of a call; None where ``error`` says why.
        low: lower quartile, milliseconds.
        high: upper quartile, milliseconds.
        relative_rms: relative RMS error of the output; None where there is no reference.
        peak_megabytes: peak memory of tensors beyond weights and input, 10⁶ bytes; None where
            operators cannot be traced.
        resident_megabytes: growth of the process during a call, scratch memory included, 10⁶
            bytes; None except on Linux.
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
        """Name of the candidate in tables and legends."""
        raise NotImplementedError

    @property
    def size(self) -> float:
        """Position on the size axis: tokens, or the image's side in pixels."""
        raise NotImplementedError

    @property
    def point(self) -> str:
        """The whole setting as text."""
        raise NotImplementedError

    @property
    def quartiles(self) -> str:
        """Lower and upper quartile in milliseconds; a dash without a time."""
        return "-" if self.low is None else f"{short(self.low)}–{short(self.high)}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: candidate and setting first, then the measured values."""
        fields = sorted(dataclasses.fields(self), key=lambda field: bool(field.kw_only))
        return {field.name: getattr(self, field.name) for field in fields}


Row = TypeVar("Row", bound=Measurement)


@dataclass(frozen=True)
class BenchResult(Generic[Row]):
    """All measurements, and the machine they were taken on.

    Attributes:
        measurements: by setting, then by candidate.
        machine: device, threads, versions.
        command: the command that measured it; empty when called from Python.
    """

    measurements: tuple[Row, ...]
    machine: dict[str, Any]
    command: str = field(default="", kw_only=True)

    #: Class of the measurements.
    row_class: ClassVar[type[Measurement]] = Measurement
    #: Column heads of the table; the first two are flush left.
    head: ClassVar[tuple[str, ...]] = ()
    #: Label of the size axis.
    axis: ClassVar[str] = ""
    #: What ``crossovers`` compares with.
    baseline: ClassVar[str] = ""
    #: Meaning of the columns, printed below the table.
    legend: ClassVar[str] = ""

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a key is missing or unknown.
        """
        values = {key: value for key, value in values.items() if key != "crossovers"}
        try:
            rows = tuple(cast(Row, cls.row_class(**row)) for row in values.pop("measurements"))
            return cls(measurements=rows, **values)
        except (TypeError, KeyError) as error:
            raise ValueError(f"not a {cls.__name__}: {error}; measure again") from error

    def cells(self, row: Row) -> tuple[str, ...]:
        """A row of the table, as long as ``head``."""
        raise NotImplementedError

    def remarks(self) -> list[str]:
        """Sentences below the table."""
        return [
            crossover_remark(label, self.baseline, size)
            for label, size in self.crossovers().items()
        ]

    def plot(self) -> Plot:
        """Times faster than the baseline against size."""
        raise NotImplementedError

    def crossovers(self) -> dict[str, int | None]:
        """Label → smallest size from which on it beats its baseline; None if it never does."""
        raise NotImplementedError

    def curves(self, value: str) -> dict[str, tuple[list[float], list[float]]]:
        """Label → (sizes, values) of one attribute of the measurements, such as milliseconds."""
        found: dict[str, tuple[list[float], list[float]]] = {}
        for row in self.measurements:
            if getattr(row, value) is not None:
                xs, ys = found.setdefault(row.label, ([], []))
                xs.append(row.size)
                ys.append(getattr(row, value))
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        rows = [row.to_dict() for row in self.measurements]
        return {**asdict(self), "measurements": rows, "crossovers": self.crossovers()}

    def table(self) -> str:
        """The machine and the measurements as aligned text."""
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
        """Write the whole result; :meth:`from_dict` reads it."""
        write_json(path, self.to_dict())

    def write_csv(self, path: str | os.PathLike[str]) -> None:
        """Write the measurements, one line each."""
        rows = [row.to_dict() for row in self.measurements]
        write_csv(path, list(rows[0]), rows)

    def write_plot(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`plot` as PNG."""
        write_bytes(path, self.plot().png())


def crossover(mine: Mapping[int, float], theirs: Mapping[int, float]) -> int | None:
    """Smallest size from which on ``mine`` is faster at every size that both have.

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
    """A crossover as a sentence; None means that there is none."""
    where = f"from {tokens} tokens on" if tokens else "at none of these sizes"
    return f"{label}: faster than {baseline} {where}"
