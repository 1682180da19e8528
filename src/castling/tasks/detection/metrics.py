"""Average precision of boxes and masks as a metric that synchronises processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from castling.data.detection.masks import pack_masks, unpack_rles
from castling.tasks.detection.figures import Figures, Found, Image, Truth, coco_figures
from castling.tasks.detection.prediction import DetectionPrediction

#: Columns of ``images``.
_INDEX, _HEIGHT, _WIDTH, _FOUND, _OBJECTS, _FOUND_BYTES, _OBJECT_BYTES = range(7)


class DetectionMetrics(Metric):
    """COCO's figures in percent; see :mod:`castling.tasks.detection.figures`.

    Everything found and everything there is kept until :meth:`compute`. Processes exchange that, so
    that any number of them computes the same as one.

    Args:
        classes: number of classes K.
    """

    full_state_update = False
    images: list[Tensor]
    found: list[Tensor]
    found_labels: list[Tensor]
    found_masks: list[Tensor]
    objects: list[Tensor]
    object_labels: list[Tensor]
    object_masks: list[Tensor]

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes
        self.add_state("images", [], dist_reduce_fx="cat")  # (n, 7) int64
        self.add_state("found", [], dist_reduce_fx="cat")  # (·, 5) float32: box, score
        self.add_state("found_labels", [], dist_reduce_fx="cat")  # (·,) int64
        self.add_state("found_masks", [], dist_reduce_fx="cat")  # (·,) uint8, packed
        self.add_state("objects", [], dist_reduce_fx="cat")  # (·, 5) float32: box, area
        self.add_state("object_labels", [], dist_reduce_fx="cat")  # (·, 2) int64: label, crowd
        self.add_state("object_masks", [], dist_reduce_fx="cat")  # (·,) uint8, packed
        self._figures: dict[str, Figures] = {}
        self._images_of: list[int] = []

    def update(
        self,
        predictions: Sequence[DetectionPrediction],
        targets: Sequence[Mapping[str, Tensor]],
        index: Sequence[int],
    ) -> None:
        """Take in images.

        Args:
            predictions: one per image.
            targets: of each image, in the coordinates of the original: ``boxes`` (m, 4), ``labels``
                (m,), ``area`` (m,), ``iscrowd`` (m,), and with masks ``segmentation``, packed.
            index: of each image, to order them by.
        """
        for one, target, position in zip(predictions, targets, index, strict=True):
            found_masks = None if one.masks is None else pack_masks(one.masks, one.original_size)
            object_masks = target.get("segmentation")
            count = len(target["labels"])
            row = (
                position,
                *one.original_size,
                len(one),
                count,
                -1 if found_masks is None else len(found_masks),
                -1 if object_masks is None else len(object_masks),
            )
            self._append("images", torch.tensor([row]))
            boxes = torch.tensor(one.boxes, dtype=torch.float32).reshape(-1, 4)
            scores = torch.tensor(one.scores, dtype=torch.float32)
            self._append("found", torch.cat((boxes, scores[:, None]), dim=1))
            self._append("found_labels", torch.tensor(one.labels, dtype=torch.int64))
            self._append("found_masks", found_masks)
            there = target["boxes"].as_subclass(Tensor).reshape(-1, 4).float()
            area = target["area"].float()
            self._append("objects", torch.cat((there, area[:, None]), dim=1))
            flags = torch.stack((target["labels"], target["iscrowd"].long()), dim=1)
            self._append("object_labels", flags)
            self._append("object_masks", object_masks)

    def _append(self, name: str, rows: Tensor | None) -> None:
        if rows is None:
            rows = torch.zeros(0, dtype=torch.uint8)
        getattr(self, name).append(rows.to(self.device))

    def compute(self) -> dict[str, float]:
        """``AP``, ``AP50``, ``AP75``, ``APs``, ``APm``, ``APl``; with masks ``mask_AP`` and so on.

        AP and AP50 are 0 where no image has an object; a size without objects has no figure. Empty
        without images.
        """
        self._figures, self._images_of = {}, []
        images = self._images()
        if not images:
            return {}
        self._figures["bbox"] = coco_figures(images, self.classes, "bbox")
        if all(one.found.masks is not None and one.truth.masks is not None for one in images):
            self._figures["segm"] = coco_figures(images, self.classes, "segm")
        having = np.zeros(self.classes, dtype=np.int64)
        for one in images:
            having[np.unique(one.truth.labels[~one.truth.crowds])] += 1
        self._images_of = having.tolist()
        values: dict[str, float] = {}
        for kind, figures in self._figures.items():
            overall = {"AP": 0.0, "AP50": 0.0} | figures.overall
            values |= {_name(kind, name): value for name, value in overall.items()}
        return values

    def class_figures(self) -> list[dict[str, float | None]]:
        """AP, AP50 and AP75 of each class, those of masks too; None without an object.

        ``images``: the number of images that show the class.
        """
        if self._computed is None:
            self.compute()
        rows: list[dict[str, float | None]] = [{} for _ in range(self.classes)]
        for kind, figures in self._figures.items():
            for row, values in zip(rows, figures.classes, strict=True):
                row |= {_name(kind, name): values[name] for name in ("AP", "AP50", "AP75")}
        for row, count in zip(rows, self._images_of, strict=True):
            row["images"] = count
        return rows

    def _images(self) -> list[Image]:
        """All images, ordered by their index."""
        if not len(self.images):
            return []
        table = dim_zero_cat(self.images).tolist()
        columns = (
            (self.found, _FOUND),
            (self.found_labels, _FOUND),
            (self.found_masks, _FOUND_BYTES),
            (self.objects, _OBJECTS),
            (self.object_labels, _OBJECTS),
            (self.object_masks, _OBJECT_BYTES),
        )
        parts = []
        for state, column in columns:
            counts = [max(0, row[column]) for row in table]
            parts.append(dim_zero_cat(state).cpu().split(counts))
        images: list[tuple[int, Image]] = []
        for row, found, labels, masks, there, flags, shapes in zip(table, *parts, strict=True):
            boxes, objects = found.double().numpy(), there.double().numpy()
            image = Image(
                (row[_HEIGHT], row[_WIDTH]),
                Found(
                    boxes[:, :4],
                    boxes[:, 4],
                    labels.numpy(),
                    None if row[_FOUND_BYTES] < 0 else unpack_rles(masks),
                ),
                Truth(
                    objects[:, :4],
                    flags[:, 0].numpy(),
                    objects[:, 4],
                    flags[:, 1].bool().numpy(),
                    None if row[_OBJECT_BYTES] < 0 else unpack_rles(shapes),
                ),
            )
            images.append((row[_INDEX], image))
        return [image for _, image in sorted(images, key=lambda pair: pair[0])]


def _name(kind: str, name: str) -> str:
    return name if kind == "bbox" else f"mask_{name}"
