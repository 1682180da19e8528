"""Rows of predictions.csv, and what a report makes of them."""

import numpy as np
import pytest
import torch

from castling.tasks.detection import DetectionPrediction
from castling.tasks.detection.figures import coco_figures
from castling.tasks.detection.metrics import DetectionMetrics
from castling.tasks.detection.records import images_of, rows_of
from castling.tasks.detection.report import best_point, choose_examples, report_parts
from castling.tasks.reporting import ReportExamples, ReportPlot, ReportTable

CLASSES = ["cat", "dog", "fish"]


def image(boxes, scores, classes, objects, kinds, crowds=None, name="a"):
    labels = [CLASSES.index(each) for each in classes]
    prediction = DetectionPrediction(
        name=name,
        original_size=(100, 100),
        boxes=tuple(boxes),
        scores=tuple(scores),
        labels=tuple(labels),
        classes=tuple(classes),
    )
    there = torch.tensor(objects, dtype=torch.float32).reshape(-1, 4)
    target = {
        "boxes": there,
        "labels": torch.tensor([CLASSES.index(each) for each in kinds], dtype=torch.int64),
        "iscrowd": torch.tensor(crowds or [False] * len(kinds)),
        "area": (there[:, 2] - there[:, 0]) * (there[:, 3] - there[:, 1]),
    }
    return prediction, target


def test_every_detection_has_a_reason():
    prediction, target = image(
        boxes=[
            (0.0, 0.0, 10.0, 10.0),  # the cat
            (0.0, 0.0, 10.0, 9.0),  # the same cat
            (20.0, 0.0, 30.0, 10.0),  # a dog called cat
            (45.0, 0.0, 55.0, 10.0),  # half beside a cat
            (70.0, 70.0, 80.0, 80.0),  # nothing
            (5.0, 60.0, 15.0, 70.0),  # in the crowd of dogs
        ],
        scores=[0.9, 0.8, 0.7, 0.6, 0.5, 0.4],
        classes=["cat", "cat", "cat", "cat", "cat", "dog"],
        objects=[(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (0, 50, 60, 100)],
        kinds=["cat", "dog", "cat", "dog"],
        crowds=[False, False, False, True],
    )
    rows = rows_of(prediction, target, CLASSES)
    found = [row["outcome"] for row in rows if row["kind"] == "found"]
    assert found == ["right", "duplicate", "class", "place", "background", "ignored"]
    there = [(row["kind"], row["outcome"]) for row in rows if row["kind"] != "found"]
    assert there == [("object", "found"), ("object", "missed"), ("object", "missed"), ("crowd", "")]
    assert rows[3]["iou"] == pytest.approx(1 / 3, abs=1e-4)


def random_images(count):
    images = []
    for number in range(count):
        rng = np.random.default_rng(number)
        corner = rng.uniform(0, 70, (6, 2))
        objects = np.concatenate([corner, corner + rng.uniform(5, 30, (6, 2))], axis=1)
        kinds = rng.choice(CLASSES[:2], 6)
        near = objects + rng.normal(0, 1.5, objects.shape)
        keep = rng.random(6) < 0.7
        names = np.where(rng.random(6) < 0.8, kinds, "cat")[keep]
        images.append(
            image(
                list(map(tuple, near[keep].astype(np.float32).tolist())),
                sorted(rng.random(int(keep.sum())).astype(np.float32).tolist(), reverse=True),
                names.tolist(),
                objects.tolist(),
                kinds.tolist(),
                crowds=(rng.random(6) < 0.2).tolist(),
                name=str(number),
            )
        )
    return images


def table_of(images):
    """Rows as a CSV file gives them back: text."""
    return [
        {"name": prediction.name, **{key: str(value) for key, value in row.items()}}
        for prediction, target in images
        for row in rows_of(prediction, target, CLASSES)
    ]


def test_the_rows_hold_all_that_the_figures_need():
    images = random_images(20)
    metric = DetectionMetrics(len(CLASSES))
    for number, (prediction, target) in enumerate(images):
        metric.update([prediction], [target], [number])
    rows = table_of(images)
    figures = coco_figures(images_of(rows, CLASSES), len(CLASSES), "bbox")
    assert figures.overall == metric.compute()
    # The outcomes are COCO's: as many are right at IoU 0.5 as its curves end with.
    for label, name in enumerate(CLASSES[:2]):
        own = [row for row in rows if row["class"] == name]
        objects = sum(row["kind"] == "object" for row in own)
        right = sum(row["outcome"] == "right" for row in own)
        last = np.flatnonzero(figures.curves[label] > 0)[-1] / 100
        assert last <= right / objects < last + 0.01


def test_best_point_is_that_of_largest_f1():
    def row(kind, outcome="", score=0.0):
        return {"kind": kind, "outcome": outcome, "score": str(score)}

    rows = [
        *[row("object")] * 4,
        row("found", "right", 0.9),
        row("found", "right", 0.8),
        row("found", "background", 0.7),
        row("found", "right", 0.6),
        row("found", "background", 0.5),
        row("found", "ignored", 0.95),
    ]
    assert best_point(rows) == pytest.approx((0.6, 3 / 4, 3 / 4))
    assert best_point(rows[:4]) is None
    assert best_point(rows[4:]) is None


def test_parts_of_the_report():
    rows = table_of(random_images(20))
    chosen = choose_examples(rows)
    assert len(set(chosen)) == len(chosen) > 10
    for index in chosen:
        rows[index]["example"] = f"{index}.jpg"
    parts = report_parts(rows, CLASSES)
    assert [type(part) for part in parts[:3]] == [ReportPlot, ReportTable, ReportTable]
    curves, classes, errors, *galleries = parts
    assert list(curves.curves) == ["mean of classes", "cat", "dog"]
    assert [row[0] for row in classes.rows] == CLASSES
    assert classes.rows[2][1:] == ("–",) * 6 + ("0",)
    counted = sum(int(row[1]) for row in errors.rows[:-1])
    assert 0 < counted <= sum(row["kind"] == "found" for row in rows)
    titles = ["Worst false positives", "Worst misses", "Right detections"]
    assert [part.title for part in galleries] == titles
    assert all(isinstance(part, ReportExamples) and part.large for part in galleries)
    assert not any(example.right for part in galleries[:2] for example in part.examples)
    assert report_parts([], CLASSES) == []


def test_many_classes_show_the_best_and_the_worst():
    from castling.tasks.detection.report import CURVES

    names = [f"class {i}" for i in range(40)]
    rows = []
    for number, name in enumerate(names):
        shared = {"name": "a", "class": name, "x1": "0", "y1": "0", "x2": "9", "y2": "9"}
        rows.append({**shared, "kind": "object", "area": "81", "outcome": "found", "iou": "1"})
        right = number % 3 > 0
        outcome = "right" if right else "place"
        side = {} if right else {"x2": "2"}
        rows.append(
            {**shared, **side, "kind": "found", "score": "0.5", "outcome": outcome, "iou": "1"}
        )
    curves, *_ = report_parts(rows, names)
    assert len(curves.curves) == CURVES
