"""What every task implements; training, evaluation, prediction and export know nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from castling.data.decode import pillow_image
from castling.data.registry import DataInfo, SourceConfig
from castling.data.sample import Batch, Sample
from castling.heads.agreement import LEAST_AGREEMENT
from castling.tasks.normalize import Normalize
from castling.tasks.prediction import Prediction
from castling.tasks.reporting import ReportPart
from castling.tasks.step import RecipeLike, Step, TaskConfig

if TYPE_CHECKING:
    import torchmetrics

    from castling.data.splits import Selection
    from castling.data.transforms.base import Transform, TransformConfig

__all__ = ["Compute", "Outputs", "RecipeLike", "Step", "Task", "TaskConfig"]

Outputs = dict[str, Tensor]
#: Outputs by name of normalised images (B, 3, H, W).
Compute = Callable[[Tensor], Outputs]


class Task(nn.Module):
    """Loss, metrics, predictions and drawing of one kind of target.

    Args:
        config: its options.
        info: of the data; classes in the order of the labels.
        transform: options of its transforms, image size and normalisation among them.
    """

    #: Key of the metrics that sums a run up, such as ``"top1"``.
    headline: ClassVar[str]
    #: Whether a larger headline is better.
    maximize: ClassVar[bool] = True
    #: Metrics that are percentages.
    percentages: ClassVar[frozenset[str]] = frozenset()
    #: Metrics shown after every epoch; empty for all.
    epoch_metrics: ClassVar[tuple[str, ...]] = ()
    #: Kinds of sources that can be trained on; see ``DataInfo.kind``.
    kinds: ClassVar[frozenset[str]]
    #: How such data are told from others, where they are of another kind; ends a message.
    data_hint: ClassVar[str] = ""
    #: The Hugging Face hub's name of the task, for model cards.
    pipeline_tag: ClassVar[str] = ""
    #: Class of its predictions.
    prediction_class: ClassVar[type[Prediction]] = Prediction
    #: Configuration class of its transforms.
    transform_config: ClassVar[type[TransformConfig]]
    #: Columns of a run's ``predictions.csv`` after ``name``; empty for a task that writes none.
    record_columns: ClassVar[tuple[str, ...]] = ()
    #: Longer side of the pictures of a report in pixels, at most.
    example_side: ClassVar[int] = 128
    #: Options of the transforms that evaluation needs.
    preprocessing_options: ClassVar[tuple[str, ...]] = ("image_size",)
    #: Whether auxiliary branches are cast away at the end of training, and evaluations count only
    #: once they are empty. A model that is trained on for another task keeps them.
    switches: ClassVar[bool] = True
    #: Whether exports are verified on images of the run: in noise there is nothing to find.
    verified_on_data: ClassVar[bool] = False
    #: Whether large images can be seen by windows; see :meth:`use_windows`.
    windowed: ClassVar[bool] = False
    #: Share of :meth:`agreement` that an exported file must reach.
    least_agreement: ClassVar[float] = LEAST_AGREEMENT

    def __init__(self, config: TaskConfig, info: DataInfo, transform: TransformConfig) -> None:
        super().__init__()
        self.config, self.info, self.transform_options = config, info, transform
        self.preprocess = Normalize(transform.mean or info.mean, transform.std or info.std)

    @classmethod
    def check(cls, recipe: RecipeLike) -> None:
        """Refuse what cannot work, before data is opened or a folder made.

        Raises:
            ValueError: with what is wrong and what to do.
        """

    @classmethod
    def read_as(cls, source: SourceConfig) -> SourceConfig:
        """The source that a recipe of this task means by ``source``; the same for most tasks."""
        return source

    @classmethod
    def generate_images(cls, folder: Path, count: int) -> SourceConfig:
        """Write meaningless images with targets, to try a recipe without its own.

        Args:
            folder: to write to; made here.
            count: how many training images; a few validation images come with them.

        Returns:
            The source that reads them.
        """
        raise NotImplementedError

    def model_arguments(self) -> dict[str, Any]:
        """Keyword arguments that the data decides, such as ``num_classes``."""
        return {"num_classes": len(self.info.classes)}

    def check_output(self, output: Any) -> None:
        """Raise ValueError unless a model's output for one image is what the task expects."""

    def prepare_training(self, model: nn.Module) -> None:
        """Load what training needs, such as a teacher, and set the model up, in place."""

    def see_training_labels(self, labels: NDArray[np.int64] | None) -> None:
        """Look at the (n,) classes of the training images before training; None without classes.

        Raises:
            ValueError: an option does not fit them.
        """

    def see_training_images(self, images: Selection) -> None:
        """Look at the training images and targets, as the source gives them, before training.

        Raises:
            ValueError: an option does not fit them; as DataError, when the data is at fault.
        """

    def use_windows(self, size: tuple[int, int], *, exactly: bool = False) -> None:
        """Predict by windows of (height, width) pixels from now on; for large images.

        Args:
            size: of each window, at least.
            exactly: of no other size either, as a file of a fixed size wants it.

        Raises:
            ValueError: the task cannot put what it finds in windows together.
        """
        raise ValueError(f"the task {self.config.name} looks at whole images, not at windows")

    def preprocessing(self) -> dict[str, Any]:
        """Options of the transforms that evaluation needs, as a model's card keeps them."""
        names = self.preprocessing_options
        values = {name: getattr(self.transform_options, name) for name in names}
        return values | {"mean": self.preprocess.mean, "std": self.preprocess.std}

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) in pixels of the batches that a model sees in evaluation."""
        return self.transform_options.size

    def input_format(self) -> dict[str, Any]:
        """How to turn an image file into the model's input, for readers that lack castling.

        Plain values, stored in exported files. Here what all tasks share; a task adds how its
        images are resized.
        """
        height, width = self.transform_options.size
        return {
            "input_size": [height, width],
            "mean": list(self.preprocess.mean),
            "std": list(self.preprocess.std),
            "channel_order": "RGB",
            "value_range": [0, 1],
            "layout": "NCHW",
            "dtype": "float32",
        }

    def transform(self, *, training: bool) -> Transform:
        """From samples to batches."""
        raise NotImplementedError

    def training_step(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """Loss of a batch on the model's device: ``"loss"`` and its named parts, 0-dimensional."""
        raise NotImplementedError

    def raw_outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Tensors of fixed shapes for normalised images (B, 3, H, W).

        Continuous functions of the images, before anything is chosen among them: the switch,
        folding and benchmarks compare these.
        """
        raise NotImplementedError

    def postprocess(
        self, model: nn.Module, raw: dict[str, Tensor], size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """What exports write and :meth:`decode` reads, from :meth:`raw_outputs`.

        Args:
            model: gave them.
            raw: as they are.
            size: (height, width) of the images in pixels.

        Returns:
            The same here; a detector's detections after suppression, say.
        """
        return raw

    def outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """:meth:`postprocess` of :meth:`raw_outputs` for normalised images (B, 3, H, W)."""
        height, width = images.shape[-2:]
        return self.postprocess(model, self.raw_outputs(model, images), (height, width))

    def agreement(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor | None:
        """(B,) share in [0, 1] of what one model says that another one says too, of outputs.

        The switch, folding and exports report it; None where a task has no such notion.
        """
        return None

    def align(
        self, before: dict[str, Tensor], after: dict[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Outputs of two models for the same images, to be compared element by element.

        Where outputs are sets, what both hold is put in the same places, and nothing else; what is
        lost on the way shows in :meth:`agreement`.
        """
        return before, after

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[Prediction]:
        """Predictions, in original coordinates, from what :meth:`outputs` gave."""
        raise NotImplementedError

    def decoded_outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Those of :meth:`outputs` that :meth:`decode` reads, without the cost of the others."""
        return self.outputs(model, images)

    def infer(self, compute: Compute, batch: Batch, model: nn.Module | None = None) -> Outputs:
        """What :meth:`decode` reads, for a batch: here of the whole images at once.

        Args:
            compute: outputs of normalised images (B, 3, H, W); a model or an exported file.
            batch: on the device of ``compute``.
            model: whose outputs they are; None for a file.
        """
        return compute(self.preprocess(batch.images))

    def infer_model(self, model: nn.Module, batch: Batch) -> Outputs:
        """:meth:`infer` by a model."""
        return self.infer(partial(self.decoded_outputs, model), batch, model)

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """One prediction per image."""
        return self.decode(self.infer_model(model, batch), batch)

    def file_notes(self) -> list[str]:
        """What predicting with an exported file does otherwise than with the model."""
        return []

    def metrics(self) -> torchmetrics.Metric:
        """An empty metric; ``compute`` gives a dictionary and synchronises processes by itself."""
        raise NotImplementedError

    def evaluation_step(self, model: nn.Module, batch: Batch, metric: torchmetrics.Metric) -> None:
        """Take one batch into the metric."""
        metric.update(self.predict(model, batch), batch)

    def class_metrics(self, metric: torchmetrics.Metric) -> dict[str, float | None]:
        """One figure per class; None for a class without images, empty where there is none."""
        return {}

    def class_figures(self, metric: torchmetrics.Metric) -> dict[str, dict[str, float | None]]:
        """A table of the classes: class → column → value, ``"images"`` the number of images.

        Other values are percentages; None where there is no value. Empty for a task without.
        """
        return {}

    def records(self, prediction: Prediction, target: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Rows of ``record_columns`` of one labelled image, for ``predictions.csv``."""
        raise NotImplementedError

    def choose_examples(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Positions of the records that a report shows pictures of; a few dozen at most."""
        return []

    def example(
        self,
        sample: Sample,
        records: Sequence[Mapping[str, Any]],
        position: int,
        predict: Callable[[], Prediction],
    ) -> Image.Image:
        """The picture of one record: here the image as the model sees it.

        Args:
            sample: the original image with its target.
            records: all of this image.
            position: of the record among them.
            predict: makes the prediction again, for a task whose records do not hold it.
        """
        return pillow_image(self.transform(training=False).resize(sample).image)

    def report_parts(self, records: Sequence[Mapping[str, str]]) -> list[ReportPart]:
        """Tables and examples for a report, from the rows of ``predictions.csv``."""
        return []

    def draw(
        self,
        image: Image.Image,
        prediction: Prediction,
        target: dict[str, Tensor] | None = None,
    ) -> Image.Image:
        """A copy of ``image`` with the prediction, and the truth where it is given."""
        raise NotImplementedError
