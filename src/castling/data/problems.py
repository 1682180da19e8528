"""Everything that is wrong with a source, as one report before any long work."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

from castling.data.errors import DataError
from castling.data.registry import Source, SourceConfig, open_source
from castling.data.verify import visit_all

Severity = Literal["error", "note"]
#: How thoroughly files are looked at, as ``data.loader.verify``.
Depth = Literal["headers", "full", "none"]
#: The kind of a problem that is one sentence.
_REMARK = "remark"
#: How many places a problem names.
EXAMPLES = 5


@dataclass(frozen=True)
class Problem:
    """One kind of fault.

    Attributes:
        kind: what is wrong, in a few words that never change.
        severity: an ``error`` keeps the data from being used; a ``note`` says what is done.
        count: how often it was found.
        examples: the first places.
        advice: what to do, or what is done.
    """

    kind: str
    severity: Severity
    count: int
    examples: tuple[str, ...]
    advice: str

    def __str__(self) -> str:
        if self.kind == _REMARK:
            return self.examples[0]
        places = ", ".join(self.examples)
        if places and self.count > len(self.examples):
            places += ", …"
        text = f"{self.kind}: {self.count}" + (f" ({places})" if places else "")
        return f"{text}; {self.advice}" if self.advice else text


@dataclass(frozen=True)
class DataReport:
    """All problems of a source.

    Attributes:
        problems: errors first.
        source: what a person calls it.
        images: number of images by split.
        objects: number of objects by split, where there are any.
        classes: names in the order of the labels.
        read_as: how files and folders were understood.
    """

    problems: tuple[Problem, ...] = ()
    source: str = ""
    images: dict[str, int] = field(default_factory=dict)
    objects: dict[str, int] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    read_as: str = ""

    def __post_init__(self) -> None:
        ordered = sorted(self.problems, key=lambda problem: problem.severity)
        object.__setattr__(self, "problems", tuple(ordered))

    @property
    def errors(self) -> tuple[Problem, ...]:
        """The problems that keep the data from being used."""
        return tuple(each for each in self.problems if each.severity == "error")

    @property
    def notes(self) -> tuple[Problem, ...]:
        """The problems that something is done about."""
        return tuple(each for each in self.problems if each.severity == "note")

    def __str__(self) -> str:
        sizes = [
            f"{count} {split} images"
            + (f" with {self.objects[split]} objects" if split in self.objects else "")
            for split, count in self.images.items()
        ]
        if self.classes:
            sizes.append(f"{len(self.classes)} classes")
        found = ", ".join(
            f"{len(kinds)} {word}{'s' * (len(kinds) != 1)}"
            for word, kinds in (("error", self.errors), ("note", self.notes))
            if kinds
        )
        head = f"{self.source}: {', '.join([*sizes, found or 'no problems'])}"
        lines = [f"  read as: {self.read_as}"] if self.read_as else []
        lines += (f"  {each.severity}: {each}" for each in self.problems)
        return "\n".join([head, *lines])

    def to_dict(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "source": self.source,
            "read_as": self.read_as,
            "images": self.images,
            "objects": self.objects,
            "classes": list(self.classes),
            "errors": len(self.errors),
            "notes": len(self.notes),
            "problems": [dataclasses.asdict(each) for each in self.problems],
        }

    def raise_errors(self) -> None:
        """Raise a :class:`FaultyDataError` with the whole report where there is an error."""
        if self.errors:
            raise FaultyDataError(self)


class FaultyDataError(DataError):
    """A source has errors; the message is its whole report.

    Attributes:
        report: the same; an empty one where the error has come from another process.
    """

    def __init__(self, report: DataReport | str) -> None:
        super().__init__(str(report))
        self.report = report if isinstance(report, DataReport) else DataReport()


@runtime_checkable
class ReportingSource(Source, Protocol):
    """A source that knows the faults of its annotations."""

    def report(self, splits: Collection[str] | None = None, depth: Depth = "headers") -> DataReport:
        """Every fault of the annotations, and of the image files as far as ``depth`` asks.

        Args:
            splits: of the source, whose image files are looked at; None for all.
            depth: ``headers`` opens every image file, ``full`` decodes it, ``none`` opens none.
        """
        ...


def check_source(config: SourceConfig, depth: Depth = "headers") -> DataReport:
    """The report of any source; that it cannot be opened is a problem too.

    Args:
        config: of the source.
        depth: see :meth:`ReportingSource.report`.

    Raises:
        FileNotFoundError: there is nothing to open.
    """
    config.check_exists()
    report = _report(config, depth)
    said = [text for text in (config.reads, report.read_as) if text]
    return dataclasses.replace(report, read_as=f"{config.name}{': ' * bool(said)}{'; '.join(said)}")


def _report(config: SourceConfig, depth: Depth) -> DataReport:
    try:
        source = open_source(config)
    except FaultyDataError as error:
        return error.report
    except (OSError, ValueError) as error:
        found = Problem("source that cannot be opened", "error", 1, (str(error),), "")
        return DataReport((found,), str(config))
    if isinstance(source, ReportingSource):
        report = source.report(depth=depth)
        return dataclasses.replace(
            report, problems=(*report.problems, *_remarks(source.info.notes))
        )
    info = source.info
    problems = _remarks(source.problems())
    read = {"headers": source.size, "full": source.sample}.get(depth)
    complaints = [] if read is None else _complaints(source, read)
    if complaints:
        problems.append(unreadable(complaints))
    return DataReport(tuple(problems), str(config), dict(info.splits), {}, tuple(info.classes))


def _remarks(texts: Sequence[str]) -> list[Problem]:
    """What a source says about itself, a note each."""
    return [Problem(_REMARK, "note", 1, (text,), "") for text in texts]


def unreadable(complaints: Sequence[str]) -> Problem:
    """The problem of image files that are damaged, by what reading them said."""
    return Problem(
        "image that cannot be read",
        "error",
        len(complaints),
        tuple(complaints[:EXAMPLES]),
        "remove it or put a sound copy back",
    )


def _complaints(source: Source, read: Callable[[str, int], object]) -> list[str]:
    return [
        text
        for split, count in source.info.splits.items()
        for text in visit_all(count, partial(read, split))
    ]
