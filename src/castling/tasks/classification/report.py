"""What a report shows of a classifier: confusions, classes, examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castling.tasks.classification.figures import ClassFigures, class_figures, confusion_matrix
from castling.tasks.reporting import Example, ReportExamples, ReportPart, ReportTable
from castling.utils.text import percent

COLUMNS = ("label", "predicted", "probability")
#: Up to this many classes the whole confusion matrix is shown.
MATRIX_CLASSES = 20
#: Rows of the table of confusions, where the matrix would be too large.
TOP_CONFUSIONS = 20
#: Rows of the table of hardest classes.
HARDEST = 10
WRONG_EXAMPLES = 24
RIGHT_EXAMPLES = 12
_HEAD = ("class", "precision", "recall", "F1", "images")


def choose_examples(rows: Sequence[Mapping[str, Any]]) -> list[int]:
    """Rows to show: the most confident wrong ones, then right ones of as many classes as fit."""
    wrong = [i for i, row in enumerate(rows) if row["label"] != row["predicted"]]
    wrong.sort(key=lambda index: -float(rows[index]["probability"]))
    by_class: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        if row["label"] == row["predicted"]:
            by_class.setdefault(str(row["label"]), []).append(index)
    right: list[int] = []
    turn = 0
    while len(right) < RIGHT_EXAMPLES and any(len(own) > turn for own in by_class.values()):
        right += [own[turn] for own in by_class.values() if len(own) > turn]
        turn += 1
    return wrong[:WRONG_EXAMPLES] + right[:RIGHT_EXAMPLES]


def report_parts(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> list[ReportPart]:
    """Confusion matrix or most frequent confusions, table of classes, wrong and right examples.

    Args:
        rows: of ``predictions.csv``.
        classes: names in the order of the labels.
    """
    if not rows:
        return []
    matrix = confusion_matrix(
        [row["label"] for row in rows], [row["predicted"] for row in rows], classes
    )
    small = len(classes) <= MATRIX_CLASSES
    parts: list[ReportPart] = [_matrix(matrix, classes) if small else _confusions(matrix, classes)]
    if not small:
        parts.append(_hardest(matrix, classes))
    parts.append(_classes(matrix, classes))
    chosen = sorted(
        (row for row in rows if row.get("example")), key=lambda row: -float(row["probability"])
    )
    wrong = [_example(row) for row in chosen if row["label"] != row["predicted"]]
    right = [_example(row) for row in chosen if row["label"] == row["predicted"]]
    if wrong:
        note = "The most confident first, as the model sees them: scaled and cropped."
        parts.append(ReportExamples(title="Wrong predictions", examples=tuple(wrong), note=note))
    if right:
        parts.append(ReportExamples(title="Right predictions", examples=tuple(right)))
    return parts


def _matrix(matrix: NDArray[np.int64], classes: Sequence[str]) -> ReportTable:
    totals = np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return ReportTable(
        title="Confusion matrix",
        head=("label \\ predicted", *classes),
        rows=tuple(
            (name, *(str(count) if count else "·" for count in row))
            for name, row in zip(classes, matrix.tolist(), strict=True)
        ),
        note="Number of images: a row for each true class, a column for what the model says.",
        shades=tuple(tuple(row) for row in (matrix / totals).tolist()),
    )


def _confusions(matrix: NDArray[np.int64], classes: Sequence[str]) -> ReportTable:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:TOP_CONFUSIONS]
    rows = []
    for flat in order.tolist():
        truth, said = divmod(flat, len(classes))
        count = int(wrong[truth, said])
        if count:
            share = count / matrix[truth].sum()
            rows.append((classes[truth], classes[said], str(count), percent(share)))
    return ReportTable(
        title="Most frequent confusions",
        head=("label", "predicted", "images", "of the label's images"),
        rows=tuple(rows),
        note=f"The confusion matrix of {len(classes)} classes would not fit.",
    )


def _hardest(matrix: NDArray[np.int64], classes: Sequence[str]) -> ReportTable:
    found = [
        (one.f1, name, one)
        for name, one in zip(classes, class_figures(matrix), strict=True)
        if one.f1 is not None
    ]
    found.sort(key=lambda each: each[0])
    return ReportTable(
        title="Hardest classes",
        head=_HEAD,
        rows=tuple(_class_row(name, one) for _, name, one in found[:HARDEST]),
        note="Those with the lowest F1.",
    )


def _classes(matrix: NDArray[np.int64], classes: Sequence[str]) -> ReportTable:
    return ReportTable(
        title="Classes",
        head=_HEAD,
        rows=tuple(
            _class_row(name, one) for name, one in zip(classes, class_figures(matrix), strict=True)
        ),
        note="Precision: share of the images called so that are so. Recall: share of the class's "
        "images that are recognised. F1: their harmonic mean.",
    )


def _class_row(name: str, one: ClassFigures) -> tuple[str, ...]:
    shares = (one.precision, one.recall, one.f1)
    return (name, *map(_percent, shares), str(one.images))


def _percent(share: float | None) -> str:
    return "–" if share is None else percent(share)


def _example(row: Mapping[str, str]) -> Example:
    right = row["label"] == row["predicted"]
    return Example(
        file=row["example"],
        text=row["predicted"] if right else f"{row['predicted']}, is {row['label']}",
        detail=f"score {percent(float(row['probability']), 0)}",
        name=row["name"],
        right=right,
    )
