"""What a report shows of a segmenter: classes, confusions, borders, best and worst images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from castling.tasks.reporting import Example, ReportExamples, ReportPart, ReportTable
from castling.tasks.segmentation.figures import Counts, class_shares, overall_figures
from castling.tasks.segmentation.records import NEAR, image_figures, images_of, matrix_of
from castling.utils.text import percent

#: Up to this many classes the whole confusion matrix is shown.
MATRIX_CLASSES = 20
#: Rows of the table of confusions, where the matrix would be too large.
TOP_CONFUSIONS = 20
WORST = 8
BEST = 4

Row = Mapping[str, Any]


def choose_examples(rows: Sequence[Row]) -> list[int]:
    """First rows of the images of lowest and of highest mIoU."""
    images = [[rows[place] for place in places] for places in images_of(rows).values()]
    starts = [places[0] for places in images_of(rows).values()]
    scores = [image_figures(own)[0] for own in images]
    order = sorted(range(len(scores)), key=lambda image: scores[image])
    worst = order[:WORST]
    best = order[len(worst) :][::-1][:BEST]
    return [starts[image] for image in worst + best]


def report_parts(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> list[ReportPart]:
    """Table of classes, confusions, errors near borders, and examples.

    Args:
        rows: of ``predictions.csv``.
        classes: names in the order of the labels.
    """
    if not rows:
        return []
    matrix = matrix_of(rows, classes)
    small = len(classes) <= MATRIX_CLASSES
    parts: list[ReportPart] = [
        _classes(rows, matrix, classes),
        _matrix(matrix, classes) if small else _confusions(matrix, classes),
        _borders(matrix, matrix_of(rows, classes, "near")),
    ]
    found = []
    for own in ([rows[place] for place in places] for places in images_of(rows).values()):
        if own[0].get("example"):
            found.append((*image_figures(own), own[0]))
    found.sort(key=lambda each: each[0])
    worst, best = found[:WORST], found[WORST:][::-1]
    for title, chosen in (("Worst images", worst), ("Best images", best)):
        if chosen:
            examples = tuple(
                Example(
                    file=row["example"],
                    text=f"mIoU {percent(iou)}",
                    detail=f"{percent(right)} of the pixels right",
                    name=row["name"],
                    right=title == "Best images",
                )
                for iou, right, row in chosen
            )
            note = "By mIoU over the classes of the image. Left: the prediction; right: the truth."
            parts.append(ReportExamples(title=title, examples=examples, note=note, large=True))
    return parts


def _classes(rows: Sequence[Row], matrix: Counts, classes: Sequence[str]) -> ReportTable:
    shares = class_shares(matrix)
    total = max(1, int(matrix.sum()))
    images = {name: len({row["name"] for row in rows if row["label"] == name}) for name in classes}
    overall = overall_figures(matrix)
    return ReportTable(
        title="Classes",
        head=("class", "IoU", "accuracy", "precision", "of the pixels", "images"),
        rows=tuple(
            (
                name,
                *(_percent(values[label]) for values in shares),
                percent(int(matrix[label].sum()) / total, 2),
                str(images[name]),
            )
            for label, name in enumerate(classes)
        ),
        note=f"mIoU {overall['mIoU']:.2f} %. IoU: right pixels by pixels that are of the class or "
        "are called so. Accuracy: share of the class's pixels that are called so. Precision: share "
        "of the pixels called so that are of the class. A class that neither occurs nor is "
        "predicted has no figures.",
    )


def _matrix(matrix: Counts, classes: Sequence[str]) -> ReportTable:
    shares = _row_shares(matrix)
    return ReportTable(
        title="Confusion matrix",
        head=("label \\ predicted", *classes),
        rows=tuple(
            (name, *(f"{100 * share:.1f}" if share else "·" for share in own))
            for name, own in zip(classes, shares.tolist(), strict=True)
        ),
        note="Percent of each true class's pixels: a row for each true class, a column for what "
        "the model says.",
        shades=tuple(tuple(own) for own in shares.tolist()),
    )


def _confusions(matrix: Counts, classes: Sequence[str]) -> ReportTable:
    wrong = matrix.copy()
    np.fill_diagonal(wrong, 0)
    total = max(1, int(matrix.sum()))
    order = np.argsort(-wrong, axis=None, kind="stable")[:TOP_CONFUSIONS]
    found = []
    for flat in order.tolist():
        truth, said = divmod(flat, len(classes))
        count = int(wrong[truth, said])
        if count:
            own = percent(count / int(matrix[truth].sum()))
            found.append((classes[truth], classes[said], percent(count / total, 2), own))
    return ReportTable(
        title="Most frequent confusions",
        head=("label", "predicted", "of all pixels", "of the label's pixels"),
        rows=tuple(found),
        note=f"The confusion matrix of {len(classes)} classes would not fit.",
    )


def _borders(matrix: Counts, near: Counts) -> ReportTable:
    wrong = int(matrix.sum() - matrix.trace())
    rows = []
    for name, part in (("near a border", near), ("inside", matrix - near)):
        count = int(part.sum())
        mistakes = int(count - part.trace())
        rows.append(
            (
                name,
                percent(count / max(1, int(matrix.sum()))),
                percent(mistakes / count) if count else "–",
                percent(mistakes / wrong) if wrong else "–",
                f"{overall_figures(part)['mIoU']:.1f} %" if count else "–",
            )
        )
    return ReportTable(
        title="Errors near borders",
        head=("", "of the pixels", "of them wrong", "of all errors", "mIoU"),
        rows=tuple(rows),
        note=f"Near: a pixel of another class lies within {percent(NEAR, 0)} of the image's "
        "diagonal. Errors there are of outlines, those inside of what a thing is.",
    )


def _row_shares(matrix: Counts) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    return shares


def _percent(share: float) -> str:
    return "–" if np.isnan(share) else percent(share)
