"""The task of detection: objects with boxes, and masks where the head gives them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from castling.data.registry import DataInfo, SourceConfig
from castling.data.sample import Batch, Sample
from castling.data.transforms.base import Transform, TransformConfig
from castling.data.transforms.detection import DetectionTransformConfig
from castling.data.transforms.detection_training import DetectionTrainTransform
from castling.data.transforms.padded import PaddedEvalTransform
from castling.heads.detector import DetectionTarget, Detector
from castling.heads.matching import align_detections, detection_agreement
from castling.tasks.dense import padded_size, require_classes, require_head, require_multiple
from castling.tasks.detection import report
from castling.tasks.detection.config import DetectionConfig
from castling.tasks.detection.examples import draw_example, draw_prediction
from castling.tasks.detection.noise import write_noise
from castling.tasks.detection.paste import pasted
from castling.tasks.detection.prediction import DetectionPrediction
from castling.tasks.detection.records import COLUMNS, rows_of
from castling.tasks.interface import RecipeLike, Step, Task
from castling.tasks.prediction import Prediction
from castling.tasks.registry import register_task
from castling.tasks.reporting import ReportPart

if TYPE_CHECKING:
    import torchmetrics


@register_task(DetectionConfig)
class DetectionTask(Task):
    """Trains a :class:`~castling.heads.detector.Detector` by its own losses.

    Training batches hold targets in their own pixels; batches of evaluation hold those of the
    original images, in whose coordinates predictions are.

    Args:
        config: none so far.
        info: of the data; its classes are the K labels.
        transform: image size, normalisation, augmentation.
    """

    headline = "AP"
    percentages = frozenset(
        prefix + name
        for prefix in ("", "mask_")
        for name in ("AP", "AP50", "AP75", "APs", "APm", "APl")
    )
    epoch_metrics = ("AP", "AP50", "mask_AP")
    kinds = frozenset({"detection"})
    data_hint = (
        ". A folder is for detection where annotations of COCO, Pascal VOC or YOLO are found in "
        "it; what is missing says: castling check-data FOLDER --format coco, voc or yolo"
    )
    pipeline_tag = "object-detection"
    prediction_class = DetectionPrediction
    record_columns = COLUMNS
    example_side = 320
    transform_config = DetectionTransformConfig
    verified_on_data = True
    preprocessing_options: ClassVar[tuple[str, ...]] = (
        "image_size",
        "resize",
        "max_size",
        "multiple",
        "interpolation",
    )

    transform_options: DetectionTransformConfig

    def __init__(self, config: DetectionConfig, info: DataInfo, transform: TransformConfig) -> None:
        super().__init__(config, info, transform)
        #: Of training batches; it decodes masks once the model is known to want them.
        self._training: list[DetectionTrainTransform] = []

    @classmethod
    def check(cls, recipe: RecipeLike) -> None:
        """Refuse a model without a head of this task."""
        require_head(str(recipe.model.name), "detection", "picodet_s/cas_vit_xs")

    @classmethod
    def generate_images(cls, folder: Path, count: int) -> SourceConfig:
        """Noise of odd sizes with objects of two classes, masks included."""
        return write_noise(folder, count)

    def prepare_training(self, model: nn.Module) -> None:
        """Ask for masks where the model learns them.

        Raises:
            ValueError: the model or its sizes do not fit the data.
        """
        detector = self._detector(model)
        require_multiple(self.transform_options.multiple, detector.multiple)
        if detector.has_masks and not self.info.has_masks:
            raise ValueError(
                "the model learns masks, but the data has boxes alone: choose a head without "
                "masks, such as faster_rcnn in the place of mask_rcnn"
            )
        for transform in self._training:
            transform.masks = detector.has_masks

    def _detector(self, model: nn.Module) -> Detector:
        if not isinstance(model, Detector):
            raise ValueError(f"{type(model).__name__} is no detector (castling.heads.Detector)")
        require_classes(model.num_classes, self.info.classes)
        return model

    @property
    def input_size(self) -> tuple[int, int]:
        """``image_size``, padded to a multiple; with ``resize: keep`` that of a square image."""
        return padded_size(self.transform_options)

    def input_format(self) -> dict[str, Any]:
        """Classes, and how images are scaled and padded."""
        own = self.transform_options.description()
        return {"classes": list(self.info.classes)} | super().input_format() | own

    def transform(self, *, training: bool) -> Transform:
        """Augmentation for training, scaling otherwise."""
        if not training:
            return PaddedEvalTransform(self.transform_options)
        transform = DetectionTrainTransform(self.transform_options, self.info)
        self._training.append(transform)
        return transform

    def training_step(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """``loss`` and the parts that the head names."""
        detector = self._detector(model)
        parts = detector.losses(self.preprocess(batch.images), targets_of(batch))
        return {"loss": torch.stack([*parts.values()]).sum(), **parts}

    def raw_outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """The head's dense outputs, before anything is chosen among them."""
        raw: dict[str, Tensor] = model(images)
        return raw

    def postprocess(
        self, model: nn.Module, raw: dict[str, Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """``boxes``, ``scores``, ``labels``, and with masks ``masks``; see ``Detector.decode``."""
        return self._detector(model).decode(raw, size)

    def agreement(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        """Share of the detections of both models that both have."""
        return detection_agreement(before, after)

    def align(
        self, before: dict[str, Tensor], after: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The detections that both have, in the same places."""
        return align_detections(before, after)

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[Prediction]:
        """Objects in pixels of the original images, best first, without those in the padding."""
        values = {name: value.detach().cpu() for name, value in outputs.items()}
        return [
            self._prediction(
                {name: value[row] for name, value in values.items()},
                batch.names[row],
                batch.original_sizes[row],
                batch.valid[row].tolist(),
            )
            for row in range(len(batch))
        ]

    def _prediction(
        self, found: dict[str, Tensor], name: str, size: tuple[int, int], valid: list[int]
    ) -> DetectionPrediction:
        height, width = size
        limits = torch.tensor([valid[1], valid[0]] * 2, dtype=torch.float32)
        scale = torch.tensor([width / valid[1], height / valid[0]] * 2)
        boxes = found["boxes"].float().clamp(min=0).minimum(limits) * scale
        filled = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
        rows = torch.nonzero((found["scores"] > 0) & filled).flatten()
        rows = rows[found["scores"][rows].argsort(descending=True, stable=True)]
        labels = found["labels"][rows].tolist()
        boxes = boxes[rows]
        known = self.info.classes
        if labels and max(labels) >= len(known):
            raise ValueError(
                f"the model found class {max(labels)}, but {len(known)} are known: its card or "
                "the data are those of another model"
            )
        return DetectionPrediction(
            name=name,
            original_size=size,
            boxes=tuple((a, b, c, d) for a, b, c, d in boxes.tolist()),
            scores=tuple(found["scores"][rows].tolist()),
            labels=tuple(labels),
            classes=tuple(known[label] for label in labels),
            masks=tuple(pasted(found["masks"][rows], boxes, size)) if "masks" in found else None,
        )

    def metrics(self) -> torchmetrics.Metric:
        """COCO's average precision, overall and per class."""
        # torchmetrics takes a second to import: prediction does without it.
        from castling.tasks.detection.metrics import DetectionMetrics

        return DetectionMetrics(len(self.info.classes))

    def evaluation_step(self, model: nn.Module, batch: Batch, metric: torchmetrics.Metric) -> None:
        """Take one batch into the metric."""
        metric.update(self.predict(model, batch), targets_of(batch), batch.index.tolist())

    def class_metrics(self, metric: torchmetrics.Metric) -> dict[str, float | None]:
        """AP of each class; None for a class without objects."""
        return {name: values["AP"] for name, values in self.class_figures(metric).items()}

    def class_figures(self, metric: torchmetrics.Metric) -> dict[str, dict[str, float | None]]:
        """AP, AP50 and AP75 of each class, of masks too, and the number of its images."""
        rows = metric.class_figures()  # type: ignore[operator]
        return dict(zip(self.info.classes, rows, strict=True))

    def records(self, prediction: Prediction, target: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Every detection and every object, and what became of it."""
        assert isinstance(prediction, DetectionPrediction)
        return rows_of(prediction, target, self.info.classes)

    def choose_examples(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Confident mistakes, large objects that were missed, and right detections."""
        return report.choose_examples(records)

    def example(
        self,
        sample: Sample,
        records: Sequence[Mapping[str, Any]],
        position: int,
        predict: Callable[[], Prediction],
    ) -> Image.Image:
        """The surroundings of a mistake, or a whole image, with boxes."""
        return draw_example(sample, records, position, self.info.classes)

    def report_parts(self, records: Sequence[Mapping[str, str]]) -> list[ReportPart]:
        """Curves, classes, reasons of errors, examples."""
        return report.report_parts(records, self.info.classes)

    def draw(
        self,
        image: Image.Image,
        prediction: Prediction,
        target: dict[str, Tensor] | None = None,
    ) -> Image.Image:
        """The image with boxes, masks, names and scores; objects that are there in white."""
        assert isinstance(prediction, DetectionPrediction)
        return draw_prediction(image, prediction, target)


def targets_of(batch: Batch) -> list[DetectionTarget]:
    """The targets of each image."""
    return [
        {name: values[row] for name, values in batch.targets.items()} for row in range(len(batch))
    ]
