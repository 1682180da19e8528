"""What a task contributes to a report: tables, curves and example images, as plain values.

A task says what there is to see; the report decides how it looks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ReportTable:
    """A table.

    Attributes:
        title: heading.
        head: of the columns.
        rows: cells as text, the first one names the row.
        note: a sentence under the heading.
        shades: per cell a value in [0, 1] for its background, the first column left out; empty for
            none. Cells whose column and row have the same number are right ones.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    shades: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image with what the model says.

    Attributes:
        file: of the image, relative to the run's folder.
        text: what the model says.
        detail: how sure it is, or by how much it is off.
        name: how a person finds the image.
        right: whether the model is right.
    """

    file: str
    text: str
    detail: str
    name: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class ReportExamples:
    """A row of example images.

    Attributes:
        title: heading.
        examples: in the order to show.
        note: a sentence under the heading.
        large: whether details matter, so that fewer fit a row.
    """

    title: str
    examples: tuple[Example, ...]
    note: str = ""
    large: bool = False


@dataclass(frozen=True, kw_only=True)
class ReportPlot:
    """Curves in one figure.

    Attributes:
        title: heading.
        curves: name → (x values, y values).
        x: label of the horizontal axis.
        y: label of the vertical axis.
        note: a sentence under the heading.
    """

    title: str
    curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
    x: str
    y: str
    note: str = ""


ReportPart = ReportTable | ReportExamples | ReportPlot
