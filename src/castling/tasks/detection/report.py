"""What a report shows of a detector: figures of classes, curves, reasons of errors, examples."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from castling.tasks.detection.figures import RECALLS, Figures, coco_figures
from castling.tasks.detection.records import images_of
from castling.tasks.reporting import (
    Example,
    ReportExamples,
    ReportPart,
    ReportPlot,
    ReportTable,
)
from castling.utils.text import percent

WRONG_EXAMPLES = MISSED_EXAMPLES = 12
RIGHT_EXAMPLES = 8
#: Up to this many classes each has its curve; else those of highest and of lowest AP50.
CURVES = 8
#: At most so many of the examples of a kind are of one image.
_PER_IMAGE = 2
_REASONS = {
    "class": "an object of another class",
    "place": "near an object of its class, IoU below 0.5",
    "duplicate": "an object that was found already",
    "background": "nothing of that kind there",
}
Row = Mapping[str, Any]


class Point(NamedTuple):
    """The score of largest F1 of a class, at IoU 0.5, with precision and recall in [0, 1]."""

    score: float
    precision: float
    recall: float


def choose_examples(rows: Sequence[Row]) -> list[int]:
    """The wrong detections of highest score, the largest missed objects, and some right ones."""
    wrong = [i for i, row in enumerate(rows) if row["outcome"] in _REASONS]
    wrong.sort(key=lambda i: -float(rows[i]["score"]))
    missed = [i for i, row in enumerate(rows) if row["outcome"] == "missed"]
    missed.sort(key=lambda i: -float(rows[i]["area"]))
    right = [i for i, row in enumerate(rows) if row["outcome"] == "right"]
    right.sort(key=lambda i: -float(rows[i]["score"]))
    return [
        *_spread(rows, wrong, WRONG_EXAMPLES, _PER_IMAGE),
        *_spread(rows, missed, MISSED_EXAMPLES, _PER_IMAGE),
        *_spread(rows, right, RIGHT_EXAMPLES, 1),
    ]


def _spread(rows: Sequence[Row], order: Sequence[int], count: int, each: int) -> list[int]:
    """The first ``count``, at most ``each`` of one image."""
    seen: Counter[str] = Counter()
    chosen: list[int] = []
    for index in order:
        name = str(rows[index]["name"])
        if seen[name] < each and len(chosen) < count:
            seen[name] += 1
            chosen.append(index)
    return chosen


def report_parts(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> list[ReportPart]:
    """Curves, table of classes, reasons of errors, and examples.

    Args:
        rows: of ``predictions.csv``.
        classes: names in the order of the labels.
    """
    if not rows:
        return []
    figures = coco_figures(images_of(rows, classes), len(classes), "bbox")
    by_class: dict[str, list[Mapping[str, str]]] = {name: [] for name in classes}
    for row in rows:
        by_class[row["class"]].append(row)
    points = {name: best_point(own) for name, own in by_class.items()}
    parts: list[ReportPart] = [
        _curves(figures, classes),
        _classes(figures, by_class, points),
        _errors(by_class, points),
    ]
    shown = [row for row in rows if row.get("example")]
    wrong = sorted(
        (row for row in shown if row["outcome"] in _REASONS), key=lambda row: -float(row["score"])
    )
    missed = sorted(
        (row for row in shown if row["outcome"] == "missed"), key=lambda row: -float(row["area"])
    )
    right = [row for row in shown if row["outcome"] == "right"]
    for title, own, note in (
        ("Worst false positives", wrong, "Wrong detections of highest score; white: objects."),
        ("Worst misses", missed, "The largest objects (white) that no detection found."),
        ("Right detections", right, "Whole images, one with each of the highest scores."),
    ):
        if own:
            found = tuple(map(_example, own))
            parts.append(ReportExamples(title=title, examples=found, note=note, large=True))
    return parts


def best_point(rows: Sequence[Row]) -> Point | None:
    """Where the F1 of one class is largest; None without objects or detections of it."""
    objects = sum(row["kind"] == "object" for row in rows)
    found = [row for row in rows if row["kind"] == "found" and row["outcome"] != "ignored"]
    if not objects or not found:
        return None
    scores = np.array([float(row["score"]) for row in found])
    order = np.argsort(-scores, kind="stable")
    right = np.cumsum([found[i]["outcome"] == "right" for i in order])
    f1 = 2 * right / (np.arange(1, len(order) + 1) + objects)
    # Detections of one score stand or fall together.
    last = np.append(np.diff(scores[order]) != 0, True)
    best = int(np.argmax(np.where(last, f1, -1)))
    return Point(scores[order][best], right[best] / (best + 1), right[best] / objects)


def _curves(figures: Figures, classes: Sequence[str]) -> ReportPlot:
    known = [label for label in range(len(classes)) if not np.isnan(figures.curves[label]).any()]
    ranked = sorted(known, key=lambda label: -_mean(figures.curves[label]))
    few = len(ranked) <= CURVES
    shown = sorted(ranked) if few else ranked[: CURVES // 2] + ranked[-(CURVES // 2 - 1) :]
    recalls = np.linspace(0, 1, RECALLS).tolist()
    curves = {}
    if len(known) > 1:
        curves["mean of classes"] = (recalls, np.mean(figures.curves[known], axis=0).tolist())
    curves |= {classes[label]: (recalls, figures.curves[label].tolist()) for label in shown}
    which = "" if few else " The classes of highest and of lowest area under the curve."
    return ReportPlot(
        title="Precision and recall",
        curves=curves,
        x="recall",
        y="precision",
        note=f"At IoU 0.5; the area below a curve is AP50.{which}",
    )


def _mean(curve: NDArray[np.float64]) -> float:
    return float(curve.mean())


def _classes(
    figures: Figures,
    by_class: Mapping[str, Sequence[Row]],
    points: Mapping[str, Point | None],
) -> ReportTable:
    rows = []
    for values, (name, own) in zip(figures.classes, by_class.items(), strict=True):
        point = points[name]
        rows.append(
            (
                name,
                *(_percent(values[key]) for key in ("AP", "AP50", "AP75")),
                *(("–",) * 3 if point is None else _texts(point)),
                str(sum(row["kind"] == "object" for row in own)),
            )
        )
    return ReportTable(
        title="Classes",
        head=("class", "AP", "AP50", "AP75", "precision", "recall", "from score", "objects"),
        rows=tuple(rows),
        note="AP: COCO's, of boxes. Precision and recall: at IoU 0.5, of the detections from the "
        "score on at which F1 is largest.",
    )


def _texts(point: Point) -> tuple[str, str, str]:
    return percent(point.precision), percent(point.recall), f"{point.score:.2f}"


def _errors(
    by_class: Mapping[str, Sequence[Row]], points: Mapping[str, Point | None]
) -> ReportTable:
    counts: Counter[str] = Counter()
    total = missed = objects = 0
    for name, own in by_class.items():
        point = points[name]
        least = 0.0 if point is None else point.score
        found = [r for r in own if r["kind"] == "found" and float(r["score"]) >= least]
        total += sum(row["outcome"] != "ignored" for row in found)
        counts.update(row["outcome"] for row in found)
        there = sum(row["kind"] == "object" for row in own)
        objects += there
        missed += there - sum(row["outcome"] == "right" for row in found)
    rows = [
        (f"wrong: {text}", str(counts[key]), _share(counts[key], total))
        for key, text in _REASONS.items()
    ]
    return ReportTable(
        title="Errors",
        head=("", "number", "share"),
        rows=(
            ("right", str(counts["right"]), _share(counts["right"], total)),
            *rows,
            ("objects not found", str(missed), _share(missed, objects)),
        ),
        note="Of the detections from each class's score of largest F1 on; the last row is of the "
        "objects.",
    )


def _share(count: int, total: int) -> str:
    return percent(count / total) if total else "–"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _example(row: Mapping[str, str]) -> Example:
    right = row["outcome"] == "right"
    if row["outcome"] == "missed":
        detail = f"nearest of its class: IoU {float(row['iou']):.2f}"
        text = row["class"]
    else:
        detail = f"IoU {float(row['iou']):.2f}" if right else _REASONS[row["outcome"]]
        text = f"{row['class']} {percent(float(row['score']), 0)}"
    return Example(file=row["example"], text=text, detail=detail, name=row["name"], right=right)
