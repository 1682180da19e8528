"""The task of semantic segmentation: a class for every pixel."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn

from castling.data.decode import pillow_image
from castling.data.registry import DataInfo, SourceConfig
from castling.data.sample import Batch, Sample
from castling.data.splits import Selection
from castling.data.transforms.base import Transform, TransformConfig
from castling.data.transforms.padded import PaddedEvalTransform
from castling.data.transforms.scene import FILL
from castling.data.transforms.segmentation import SegmentationTransformConfig
from castling.data.transforms.segmentation_training import SegmentationTrainTransform
from castling.heads.agreement import LEAST_PIXEL_AGREEMENT
from castling.heads.segmenter import Segmenter
from castling.heads.segmenter_outputs import SegmenterOutputs
from castling.tasks.dense import padded_size, require_classes, require_head, require_multiple
from castling.tasks.interface import Compute, Outputs, RecipeLike, Step, Task
from castling.tasks.prediction import Prediction
from castling.tasks.registry import register_task
from castling.tasks.reporting import ReportPart
from castling.tasks.segmentation import report
from castling.tasks.segmentation.config import SegmentationConfig, pair
from castling.tasks.segmentation.drawing import draw_masks
from castling.tasks.segmentation.inference import Windows, augmented, slide
from castling.tasks.segmentation.noise import write_noise
from castling.tasks.segmentation.original import original_labels
from castling.tasks.segmentation.palette import colour_table
from castling.tasks.segmentation.prediction import SegmentationPrediction
from castling.tasks.segmentation.records import COLUMNS, rows_of
from castling.tasks.segmentation.weights import automatic_weights, counted, given_weights

if TYPE_CHECKING:
    import torchmetrics

_log = logging.getLogger(__name__)


@register_task(SegmentationConfig)
class SegmentationTask(Task):
    """Trains a :class:`~castling.heads.segmenter.Segmenter` by its own losses.

    Training batches hold masks of their own pixels; batches of evaluation those of the original
    images, at whose size predictions are compared.

    Args:
        config: weights of classes, and how images are computed.
        info: of the data; its classes are the K labels.
        transform: image size, normalisation, augmentation.

    Raises:
        ValueError: the configuration gives weights of another number of classes.
    """

    headline = "mIoU"
    percentages = frozenset({"mIoU", "mAcc", "pAcc"})
    kinds = frozenset({"segmentation"})
    data_hint = (
        ". A folder is for segmentation where masks are found beside its images, as "
        "images/train/a.jpg and masks/train/a.png; what is missing says: castling check-data "
        "FOLDER --format masks"
    )
    pipeline_tag = "image-segmentation"
    prediction_class = SegmentationPrediction
    record_columns = COLUMNS
    example_side = 640
    transform_config = SegmentationTransformConfig
    verified_on_data = True
    windowed = True
    least_agreement = LEAST_PIXEL_AGREEMENT
    preprocessing_options: ClassVar[tuple[str, ...]] = (
        "image_size",
        "resize",
        "max_size",
        "multiple",
        "interpolation",
    )

    config: SegmentationConfig
    transform_options: SegmentationTransformConfig
    class_weights: Tensor | None

    def __init__(
        self, config: SegmentationConfig, info: DataInfo, transform: TransformConfig
    ) -> None:
        super().__init__(config, info, transform)
        given = config.class_weights
        weights = None if isinstance(given, str) else given_weights(given, info.classes)
        self.register_buffer("class_weights", weights, persistent=False)
        self._compared = SegmenterOutputs()
        self._windows: Windows | None = None
        self._said = False
        if config.inference == "slide":
            stride = None if config.stride is None else pair(config.stride)
            size = self.transform_options.size if config.window is None else pair(config.window)
            self._windows = Windows.rounded(size, stride, self.transform_options.multiple)

    @classmethod
    def check(cls, recipe: RecipeLike) -> None:
        """Refuse a model without a head of this task."""
        require_head(str(recipe.model.name), "segmentation", "semantic_fpn/cas_vit_xs")

    @classmethod
    def generate_images(cls, folder: Path, count: int) -> SourceConfig:
        """Noise of odd sizes with masks of two classes."""
        return write_noise(folder, count)

    def prepare_training(self, model: nn.Module) -> None:
        """Raise ValueError where the model or its sizes do not fit the data."""
        require_multiple(self.transform_options.multiple, self._segmenter(model).multiple)

    def see_training_images(self, images: Selection) -> None:
        """Weigh classes by their pixels where that is asked for."""
        if self.config.class_weights == "auto":
            self.class_weights = automatic_weights(counted(images)).to(self.preprocess.scale.device)

    def _segmenter(self, model: nn.Module) -> Segmenter:
        if not isinstance(model, Segmenter):
            raise ValueError(f"{type(model).__name__} is no segmenter (castling.heads.Segmenter)")
        require_classes(model.num_classes, self.info.classes)
        return model

    @property
    def input_size(self) -> tuple[int, int]:
        """``image_size``, padded to a multiple; with ``resize: keep`` that of a square image."""
        return padded_size(self.transform_options)

    def input_format(self) -> dict[str, Any]:
        """Classes and their colours, and how images are scaled and padded."""
        colours = colour_table(self.info.colours, self.info.classes)
        return {
            "classes": list(self.info.classes),
            "colours": colours[: len(self.info.classes)].tolist(),
            **super().input_format(),
            **self.transform_options.description(),
        }

    def transform(self, *, training: bool) -> Transform:
        """Augmentation for training, scaling otherwise."""
        if training:
            return SegmentationTrainTransform(self.transform_options, self.info)
        return PaddedEvalTransform(self.transform_options)

    def training_step(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """``loss`` and the parts that the head names."""
        masks = batch.targets["mask"]
        assert isinstance(masks, Tensor)
        images = self.preprocess(batch.images)
        parts = self._segmenter(model).losses(images, masks.long(), self.class_weights)
        return {"loss": torch.stack([*parts.values()]).sum(), **parts}

    def raw_outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        """The head's dense outputs."""
        return self._compared.raw_outputs(model, images)

    def postprocess(self, model: nn.Module, raw: Outputs, size: tuple[int, int]) -> Outputs:
        """``logits`` (B, K, h, w), the head's scores, and ``mask`` (B, H, W) int64 labels."""
        return self._compared.postprocess(self._segmenter(model), raw, size)

    def agreement(self, before: Outputs, after: Outputs) -> Tensor:
        """(B,) share of the pixels with the same label."""
        return self._compared.agreement(before, after)

    def align(self, before: Outputs, after: Outputs) -> tuple[Outputs, Outputs]:
        """Label 0 where labels differ."""
        return self._compared.align(before, after)

    def decoded_outputs(self, model: nn.Module, images: Tensor) -> Outputs:
        """The scores alone."""
        return {"logits": self._segmenter(model).scores(self.raw_outputs(model, images))}

    def use_windows(self, size: tuple[int, int], *, exactly: bool = False) -> None:
        """Predict by windows of (height, width), as ``task.inference: slide`` does."""
        make = Windows.exactly if exactly else Windows.rounded
        self._windows = make(size, None, self.transform_options.multiple)

    def _say_if_one_window(self, batch: Batch, windows: Windows) -> None:
        """Say once that a large image is seen whole, because it is scaled before."""
        (height, width), seen = windows.size, batch.images.shape[-2:]
        if self._said or windows.exact or seen[0] > height or seen[1] > width:
            return
        large = [own for own in batch.original_sizes if own[0] > height or own[1] > width]
        if large:
            self._said = True
            _log.warning(
                "windows of %d×%d pixels change nothing: an image of %d×%d is scaled to %d×%d "
                "first; a model trained with data.transform.resize none sees it at full size",
                *(height, width, *large[0], *seen),
            )

    def file_notes(self) -> list[str]:
        """That probabilities of copies of an image are not averaged."""
        if not self.config.augment.active:
            return []
        return ["test-time augmentation (task.augment) is left out: a file does not hold it"]

    def infer(self, compute: Compute, batch: Batch, model: nn.Module | None = None) -> Outputs:
        """``logits`` (B, K, h, w) of padded images, by windows and copies as configured.

        They are the head's scores, or with test-time augmentation probabilities.
        """
        images = self.preprocess(batch.images)
        scores = partial(_scores, compute)
        if self._windows is not None:
            self._say_if_one_window(batch, self._windows)
            grey = self.preprocess(batch.images.new_full((3, 1, 1), FILL))
            scores = partial(slide, scores, windows=self._windows, fill=grey)
        augment = self.config.augment
        if model is None or not augment.active:
            return {"logits": scores(images)}
        probabilities = self._segmenter(model).probabilities
        multiple = self.transform_options.multiple
        found = augmented(scores, probabilities, images, augment.scales, augment.flip, multiple)
        return {"logits": found}

    def _labels(self, outputs: Outputs, batch: Batch) -> list[Tensor]:
        """(H, W) uint8 of each image at its original size, on the device of the outputs."""
        scores = outputs["logits"]
        require_classes(scores.shape[1], self.info.classes)
        height, width = batch.images.shape[-2:]
        valid = batch.valid.tolist()
        return [
            original_labels(scores[row], (height, width), (valid[row][0], valid[row][1]), size)
            for row, size in enumerate(batch.original_sizes)
        ]

    def decode(self, outputs: Outputs, batch: Batch) -> list[Prediction]:
        """The class of every pixel of the original images."""
        found: list[Prediction] = []
        for row, labels in enumerate(self._labels(outputs, batch)):
            counts = labels.flatten().bincount(minlength=len(self.info.classes))
            found.append(
                SegmentationPrediction(
                    name=batch.names[row],
                    original_size=batch.original_sizes[row],
                    mask=labels.cpu().numpy(),
                    pixels=tuple(counts.tolist()),
                    classes=tuple(self.info.classes),
                    colours=self.info.colours,
                )
            )
        return found

    def metrics(self) -> torchmetrics.Metric:
        """IoU and accuracy from one confusion matrix, overall and per class."""
        # torchmetrics takes a second to import: prediction does without it.
        from castling.tasks.segmentation.metrics import SegmentationMetrics

        return SegmentationMetrics(len(self.info.classes))

    def evaluation_step(self, model: nn.Module, batch: Batch, metric: torchmetrics.Metric) -> None:
        """Take one batch into the metric, without leaving the device."""
        labels = self._labels(self.infer_model(model, batch), batch)
        metric.update(labels, [*batch.targets["mask"]])

    def class_metrics(self, metric: torchmetrics.Metric) -> dict[str, float | None]:
        """IoU of each class; None for a class that neither occurs nor is predicted."""
        return {name: values["IoU"] for name, values in self.class_figures(metric).items()}

    def class_figures(self, metric: torchmetrics.Metric) -> dict[str, dict[str, float | None]]:
        """IoU, accuracy and precision of each class, and the number of its images."""
        rows = metric.class_figures()  # type: ignore[operator]
        return dict(zip(self.info.classes, rows, strict=True))

    def records(self, prediction: Prediction, target: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """How many pixels of each class are called what."""
        assert isinstance(prediction, SegmentationPrediction)
        assert prediction.mask is not None
        return rows_of(prediction.mask, target["mask"], self.info.classes)

    def choose_examples(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """The images of lowest and of highest mIoU."""
        return report.choose_examples(records)

    def example(
        self,
        sample: Sample,
        records: Sequence[Mapping[str, Any]],
        position: int,
        predict: Callable[[], Prediction],
    ) -> Image.Image:
        """The prediction over the image, and the truth beside it."""
        return self.draw(pillow_image(sample.image), predict(), sample.target)

    def report_parts(self, records: Sequence[Mapping[str, str]]) -> list[ReportPart]:
        """Classes, confusions, errors near borders, examples."""
        return report.report_parts(records, self.info.classes)

    def draw(
        self,
        image: Image.Image,
        prediction: Prediction,
        target: dict[str, Tensor] | None = None,
    ) -> Image.Image:
        """The image with the colours of its classes, and the truth beside it; a legend below."""
        assert isinstance(prediction, SegmentationPrediction)
        assert prediction.mask is not None
        masks = [("prediction", prediction.mask)]
        if target is not None:
            masks.append(("truth", target["mask"].cpu().numpy()))
        table = colour_table(self.info.colours, self.info.classes)
        return draw_masks(image, masks, self.info.classes, table)


def _scores(compute: Compute, images: Tensor) -> Tensor:
    return compute(images)["logits"]
