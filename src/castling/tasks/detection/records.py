"""Rows of ``predictions.csv``: every detection and every object of an image, and what became of it.

A wrong detection has a reason, of these the first that fits (after TIDE; Bolya et al., 2020):
``duplicate``: the object was found with a higher score; ``class``: it is an object of another
class; ``place``: an object of its class lies near, with an IoU of at least 0.1; ``background``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from castling.tasks.detection.figures import Found, Image, Truth
from castling.tasks.detection.matching import match, overlaps
from castling.tasks.detection.prediction import DetectionPrediction

COLUMNS = ("kind", "class", "score", "x1", "y1", "x2", "y2", "area", "outcome", "iou")
_SIDES = ("x1", "y1", "x2", "y2")
#: IoU from which on a detection is right, and from which on it is near an object.
RIGHT, NEAR = 0.5, 0.1


def rows_of(
    prediction: DetectionPrediction, target: Mapping[str, Tensor], classes: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of one image.

    ``kind`` is ``found`` for a detection, whose ``outcome`` is ``right``, ``ignored`` (on a crowd)
    or a reason; ``object``, whose outcome is ``found`` or ``missed``; or ``crowd``. ``iou`` is that
    with the object that a detection is, or with the nearest of its class; of a missed object, that
    of the nearest detection of its class.
    """
    boxes = np.array(prediction.boxes, dtype=np.float64).reshape(-1, 4)
    labels = np.array(prediction.labels, dtype=np.int64)
    objects = target["boxes"].cpu().double().numpy().reshape(-1, 4)
    kinds = target["labels"].cpu().numpy()
    crowds = target["iscrowd"].cpu().numpy()
    areas = target["area"].cpu().double().numpy()
    outcome = np.full(len(boxes), "background", dtype=object)
    iou = np.zeros(len(boxes))
    found = np.zeros(len(objects), dtype=bool)
    nearest = np.zeros(len(objects))
    for label in np.union1d(labels, kinds):
        mine, theirs = np.flatnonzero(labels == label), np.flatnonzero(kinds == label)
        matches = match(boxes[mine], objects[theirs], crowds[theirs], RIGHT)
        iou[mine] = matches.overlap
        outcome[mine[matches.overlap >= NEAR]] = "place"
        outcome[mine[matches.overlap >= RIGHT]] = "duplicate"
        outcome[mine[matches.ignored]] = "ignored"
        outcome[mine[matches.found >= 0]] = "right"
        found[theirs[matches.found[matches.found >= 0]]] = True
        nearest[theirs] = matches.reached
    _mark_other_classes(outcome, boxes, labels, objects[~crowds], kinds[~crowds])
    rows = [
        {
            "kind": "found",
            "class": prediction.classes[row],
            "score": prediction.scores[row],
            **_corners(boxes[row]),
            "outcome": outcome[row],
            "iou": round(iou[row], 4),
        }
        for row in range(len(boxes))
    ]
    for row in range(len(objects)):
        seen = "found" if found[row] else "missed"
        rows.append(
            {
                "kind": "crowd" if crowds[row] else "object",
                "class": classes[kinds[row]],
                **_corners(objects[row]),
                "area": areas[row],
                "outcome": "" if crowds[row] else seen,
                "iou": round(nearest[row], 4),
            }
        )
    return rows


def _mark_other_classes(
    outcome: NDArray[Any],
    boxes: NDArray[np.float64],
    labels: NDArray[np.int64],
    objects: NDArray[np.float64],
    kinds: NDArray[np.int64],
) -> None:
    """Give the outcome ``class`` to what would be right for another class, in place."""
    overlap = overlaps(boxes, objects, np.zeros(len(objects), dtype=bool))
    other = (overlap >= RIGHT) & (labels[:, None] != kinds[None])
    wrong = np.isin(outcome, ("place", "background"))
    outcome[wrong & other.any(axis=1)] = "class"


def _corners(box: NDArray[np.float64]) -> dict[str, float]:
    return dict(zip(_SIDES, box.tolist(), strict=True))


def images_of(rows: Sequence[Mapping[str, str]], classes: Sequence[str]) -> list[Image]:
    """What the rows of ``predictions.csv`` say, one entry per image that has any row."""
    labels = {name: label for label, name in enumerate(classes)}
    images: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        images.setdefault(row["name"], []).append(row)
    entries = []
    for own in images.values():
        found = [row for row in own if row["kind"] == "found"]
        there = [row for row in own if row["kind"] != "found"]
        entries.append(
            Image(
                (0, 0),  # only masks need it
                Found(
                    _boxes(found),
                    np.array([float(row["score"]) for row in found]),
                    np.array([labels[row["class"]] for row in found], dtype=np.int64),
                ),
                Truth(
                    _boxes(there),
                    np.array([labels[row["class"]] for row in there], dtype=np.int64),
                    np.array([float(row["area"]) for row in there]),
                    np.array([row["kind"] == "crowd" for row in there], dtype=bool),
                ),
            )
        )
    return entries


def _boxes(rows: Sequence[Mapping[str, str]]) -> NDArray[np.float64]:
    return np.array([corners(row) for row in rows], dtype=np.float64).reshape(-1, 4)


def corners(row: Mapping[str, Any]) -> tuple[float, float, float, float]:
    """x1, y1, x2, y2 of a row."""
    left, top, right, bottom = (float(row[side]) for side in _SIDES)
    return left, top, right, bottom
