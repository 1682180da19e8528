"""COCO's average precision, computed by faster-coco-eval.

AP is the mean over classes and over IoU 0.50, 0.55, …, 0.95 of the area under the interpolated
precision-recall curve at 101 recalls, of at most 100 detections per image and class (Lin et al.,
2014; https://cocodataset.org/#detection-eval). A detection whose best match is a crowd is neither
right nor wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

#: Recalls at which a curve is interpolated.
RECALLS = 101
#: Position of IoU 0.75 among the thresholds.
_IOU75 = 5
_AREAS = ("all", "s", "m", "l")

Boxes = NDArray[np.float64]
RLE = dict[str, Any]


class Found(NamedTuple):
    """What was found in an image: boxes (n, 4) x1, y1, x2, y2; scores (n,); labels (n,); masks."""

    boxes: Boxes
    scores: NDArray[np.float64]
    labels: NDArray[np.int64]
    masks: Sequence[RLE] | None = None


class Truth(NamedTuple):
    """The objects of an image: boxes (m, 4), labels (m,), areas (m,) in pixels², crowds, masks."""

    boxes: Boxes
    labels: NDArray[np.int64]
    areas: NDArray[np.float64]
    crowds: NDArray[np.bool_]
    masks: Sequence[RLE] | None = None


class Image(NamedTuple):
    """(height, width) of an image, what was found, and what is there."""

    size: tuple[int, int]
    found: Found
    truth: Truth


@dataclass(frozen=True)
class Figures:
    """Figures in percent; one that has no object to be measured on is missing, of a class None.

    Attributes:
        overall: ``AP``, ``AP50``, ``AP75``, and ``APs``, ``APm``, ``APl`` of objects below 32²,
            below 96² and of more pixels.
        classes: the same keys, for each class.
        curves: (K, 101) precision in [0, 1] at IoU 0.5 and recalls 0, 0.01, …, 1; NaN for a class
            without objects.
    """

    overall: dict[str, float]
    classes: list[dict[str, float | None]]
    curves: NDArray[np.float64]


def coco_figures(images: Sequence[Image], classes: int, kind: Literal["bbox", "segm"]) -> Figures:
    """The figures of boxes or of masks.

    Args:
        images: in an order that does not depend on how they were evaluated: among detections of
            the same score the earlier image counts first.
        classes: K.
        kind: ``"segm"`` needs the masks of everything.
    """
    precision = _precision(images, classes, kind)
    values = {
        "AP": precision[..., 0],
        "AP50": precision[:1, ..., 0],
        "AP75": precision[_IOU75 : _IOU75 + 1, ..., 0],
        **{f"AP{size}": precision[..., i] for i, size in enumerate(_AREAS) if i},
    }
    overall = {name: mean for name, each in values.items() if (mean := _mean(each)) is not None}
    return Figures(
        overall=overall,
        classes=[
            {name: _mean(each[:, :, label]) for name, each in values.items()}
            for label in range(classes)
        ],
        curves=np.where(precision[0, ..., 0] > -1, precision[0, ..., 0], np.nan).T,
    )


def _mean(precision: NDArray[np.float64]) -> float | None:
    """Percent; entries of classes without objects, which are -1, are left out."""
    known = precision[precision > -1]
    return 100 * float(known.mean()) if known.size else None


def _precision(
    images: Sequence[Image], classes: int, kind: Literal["bbox", "segm"]
) -> NDArray[np.float64]:
    """(10, 101, K, 4): IoU, recall, class, area; -1 where there is no object."""
    from faster_coco_eval import COCO, COCOeval_faster

    truths: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    for number, image in enumerate(images, 1):
        truth = image.truth
        for row, box in enumerate(_xywh(truth.boxes)):
            truths.append(
                {
                    "id": len(truths) + 1,  # 0 means "not matched" there
                    "image_id": number,
                    "category_id": int(truth.labels[row]),
                    "bbox": box,
                    "area": float(truth.areas[row]),
                    "iscrowd": int(truth.crowds[row]),
                    **_segmentation(truth.masks, row, kind),
                }
            )
        for row, box in enumerate(_xywh(image.found.boxes)):
            mask = _segmentation(image.found.masks, row, kind)
            found.append(
                {
                    "id": len(found) + 1,
                    "image_id": number,
                    "category_id": int(image.found.labels[row]),
                    "bbox": box,
                    "area": _area(mask["segmentation"]) if mask else box[2] * box[3],
                    "score": float(image.found.scores[row]),
                    **mask,
                }
            )
    shared = {
        "images": [
            {"id": number, "height": image.size[0], "width": image.size[1]}
            for number, image in enumerate(images, 1)
        ],
        "categories": [{"id": label, "name": str(label)} for label in range(classes)],
    }
    evaluation = COCOeval_faster(
        COCO({**shared, "annotations": truths}), COCO({**shared, "annotations": found}), kind
    )
    evaluation.evaluate()
    evaluation.accumulate()
    precision: NDArray[np.float64] = evaluation.eval["precision"]
    return precision[..., -1]  # at most 100 detections


def _xywh(boxes: Boxes) -> list[list[float]]:
    """COCO's boxes: corner and sides."""
    wide = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    rows: list[list[float]] = np.hstack([wide[:, :2], wide[:, 2:] - wide[:, :2]]).tolist()
    return rows


def _segmentation(masks: Sequence[RLE] | None, row: int, kind: str) -> dict[str, RLE]:
    if kind == "bbox":
        return {}
    assert masks is not None
    return {"segmentation": masks[row]}


def _area(mask: RLE) -> float:
    from faster_coco_eval import mask as masks

    return float(masks.area(mask))
