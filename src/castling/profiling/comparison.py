"""One comparison: candidates that pass their check are timed in turns, the others say why not."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Generic, TypeVar

from castling.profiling.checks import CheckError
from castling.profiling.results import Measurement
from castling.utils.text import first_line
from castling.utils.timing import Call, Timer, time_alternately

#: Failures of one candidate that do not stop the others.
FAILURES = (CheckError, ValueError, RuntimeError, AssertionError, ImportError, MemoryError)

Key = TypeVar("Key", bound=Hashable)
Row = TypeVar("Row", bound=Measurement)


class Comparison(Generic[Key, Row]):
    """The candidates of one setting and their measurements."""

    def __init__(self) -> None:
        self._rows: dict[Key, Row] = {}
        self._calls: dict[Key, Call] = {}

    @contextmanager
    def trying(self, key: Key, blank: Row) -> Iterator[None]:
        """Turn a failure inside into the candidate's row: ``blank`` with the failure's message."""
        try:
            yield
        except FAILURES as error:
            self.refuse(key, blank, first_line(error))

    def enter(self, key: Key, call: Call, row: Row) -> None:
        """Register a candidate that passed its check: the call to time, and its row so far."""
        self._calls[key], self._rows[key] = call, row

    def refuse(self, key: Key, blank: Row, reason: str) -> None:
        """Record why a candidate has no time."""
        self._rows[key] = replace(blank, error=reason)

    def measure(
        self,
        ratios: Callable[[Key, Mapping[Key, float]], dict[str, Any]],
        *,
        rounds: int,
        seconds: float,
        timer: Timer,
    ) -> list[Row]:
        """Time the registered candidates.

        Args:
            ratios: (candidate, milliseconds of all) -> further fields of its row.
            rounds: as :func:`time_alternately`.
            seconds: as :func:`time_alternately`.
            timer: as :func:`time_alternately`.

        Returns:
            all rows, in order of registration.
        """
        times = time_alternately(self._calls, rounds=rounds, seconds=seconds, timer=timer)
        medians = {key: timing.milliseconds for key, timing in times.items()}
        done = []
        for key, row in self._rows.items():
            if key in times:
                low, high = times[key].low, times[key].high
                row = replace(row, milliseconds=medians[key], low=low, high=high)
                row = replace(row, **ratios(key, medians))
            done.append(row)
        return done
