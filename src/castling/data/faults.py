"""Kinds of faults of annotated images, and their numbers as they are found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from castling.data.problems import EXAMPLES, Problem, Severity


@dataclass(frozen=True)
class Fault:
    """A kind of fault.

    Attributes:
        kind: what is wrong.
        severity: whether it keeps the data from being used.
        advice: what to do, or what is done.
        of: what is counted: ``objects`` or ``images`` with such an error are left out, with a note,
            where they are few enough (``leave_out``); errors of the whole ``set`` are never passed.
        kept: the share of them up to which an error is a note and nothing is left out; above it,
            the error is not passed.
    """

    kind: str
    severity: Severity
    advice: str
    of: Literal["objects", "images", "set"] = "set"
    kept: float = 0.0


def object_fault(kind: str, advice: str) -> Fault:
    """An error of single objects, which may be left out."""
    return Fault(kind, "error", advice, "objects")


def image_fault(kind: str, advice: str) -> Fault:
    """An error of single images, which may be left out."""
    return Fault(kind, "error", advice, "images")


def set_fault(kind: str, advice: str) -> Fault:
    """An error that is never passed."""
    return Fault(kind, "error", advice)


def note_fault(kind: str, advice: str) -> Fault:
    """Something that is done, or of which a person should know."""
    return Fault(kind, "note", advice)


@dataclass
class Faults:
    """Faults as they are found: their number and the first places, by name in a table of kinds."""

    counts: dict[str, int] = field(default_factory=dict)
    places: dict[str, list[str]] = field(default_factory=dict)

    def add(self, name: str, place: str, count: int = 1) -> None:
        """Count a fault found at a place."""
        self.counts[name] = self.counts.get(name, 0) + count
        known = self.places.setdefault(name, [])
        if len(known) < EXAMPLES and place not in known:
            known.append(place)

    def add_all(self, name: str, places: Iterable[str]) -> None:
        """Count a fault found at each of several places."""
        for place in places:
            self.add(name, place)

    def together(self, other: Faults) -> Faults:
        """These and others, in that order."""
        both = Faults()
        both.take(self)
        both.take(other)
        return both

    def take(self, other: Faults) -> None:
        """Count others after these."""
        for name, count in other.counts.items():
            listed = other.places[name]
            self.add_all(name, listed)
            self.counts[name] += count - len(listed)

    def problems(
        self, kinds: Mapping[str, Fault], leave_out: float, totals: Mapping[str, int]
    ) -> tuple[Problem, ...]:
        """What to report, in the order of the kinds.

        Args:
            kinds: of all faults, by name.
            leave_out: the share of objects or images that may be left out for one kind of fault.
            totals: number of ``objects`` and ``images``.
        """
        found = []
        for name, fault in kinds.items():
            count = self.counts.get(name, 0)
            if not count:
                continue
            severity, advice = fault.severity, fault.advice
            if fault.kept:
                severity = "note" if count <= fault.kept * totals[fault.of] else severity
            elif fault.of != "set" and count <= leave_out * totals[fault.of]:
                severity, advice = "note", f"left out; {advice}"
            elif fault.of != "set":
                share = _share(count, totals[fault.of])
                advice += f", or leave such {fault.of} out: source.leave_out {share}"
            found.append(Problem(fault.kind, severity, count, tuple(self.places[name]), advice))
        return tuple(found)


def _share(count: int, total: int) -> str:
    """The least share, in two digits, that covers a count."""
    return "1" if count >= total else f"{min(1.0, count / total * 1.05 + 0.005):.2f}"
