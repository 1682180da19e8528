"""The task of classification: one label per image."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from castling.data.erasing import erase_batch
from castling.data.mixing import mixes, mixup_batch
from castling.data.registry import DataInfo, SourceConfig
from castling.data.sample import Batch
from castling.data.sampler import sample_keys
from castling.data.transforms.base import Transform, TransformConfig
from castling.data.transforms.classification import (
    ClassificationEvalTransform,
    ClassificationTrainTransform,
    ClassificationTransformConfig,
)
from castling.tasks.classification import report
from castling.tasks.classification.config import ClassificationConfig
from castling.tasks.classification.drawing import with_caption
from castling.tasks.classification.losses import (
    balanced_weights,
    distillation_loss,
    label_loss,
    mean_of_heads,
    self_distillation_loss,
)
from castling.tasks.classification.noise import write_noise
from castling.tasks.classification.prediction import ClassificationPrediction
from castling.tasks.interface import RecipeLike, Step, Task
from castling.tasks.prediction import Prediction
from castling.tasks.registry import register_task
from castling.tasks.reporting import ReportPart
from castling.tasks.teacher import Teacher, check_teacher, load_teacher
from castling.utils.text import percent

if TYPE_CHECKING:
    import torchmetrics


@register_task(ClassificationConfig)
class ClassificationTask(Task):
    """Trains (B, 3, H, W) → logits (B, K); two heads in training are understood.

    A model that returns a tuple (class logits, distillation logits) in training, as distilled DeiT,
    LeViT and CAS-ViT do, teaches its second head by the teacher; without a teacher both heads
    learn from the labels.

    Args:
        config: losses, mixing, teacher.
        info: of the data; its classes are the K labels.
        transform: image size, normalisation, augmentation.
    """

    headline = "top1"
    percentages = frozenset({"top1", "top5"})
    kinds = frozenset({"classification"})
    data_hint = ". Images for classification lie in folders named by their classes"
    pipeline_tag = "image-classification"
    prediction_class = ClassificationPrediction
    record_columns = report.COLUMNS
    transform_config = ClassificationTransformConfig
    preprocessing_options: ClassVar[tuple[str, ...]] = (
        "image_size",
        "interpolation",
        "crop_fraction",
        "eval_crop",
    )

    class_weights: Tensor | None
    config: ClassificationConfig
    transform_options: ClassificationTransformConfig

    def __init__(
        self, config: ClassificationConfig, info: DataInfo, transform: TransformConfig
    ) -> None:
        super().__init__(config, info, transform)
        # A list hides the frozen teacher from parameters(), state_dict() and DDP.
        self._teacher: list[Teacher] = []
        self.register_buffer("class_weights", None, persistent=False)

    @classmethod
    def check(cls, recipe: RecipeLike) -> None:
        """Refuse a teacher that does not exist, and a moving average that is off."""
        check_teacher(recipe.task.distill)
        if recipe.task.self_distill.weight and not recipe.ema.decay:
            raise ValueError("task.self_distill needs the moving average: set ema.decay")

    @classmethod
    def generate_images(cls, folder: Path, count: int) -> SourceConfig:
        """Noise of odd sizes in two classes."""
        return write_noise(folder, count)

    def check_output(self, output: Any) -> None:
        """Raise ValueError unless there is one logit per class."""
        logits = output[0] if isinstance(output, (tuple, list)) else output
        classes = len(self.info.classes)
        if logits.shape[-1] != classes:
            raise ValueError(
                f"the model has {logits.shape[-1]} outputs, the data {classes} classes: "
                "leave model.kwargs.num_classes out"
            )

    def prepare_training(self, model: nn.Module) -> None:
        """Load the teacher, and let timm's distilled models return both heads."""
        config = self.config.distill
        if config.kind != "none":
            self.set_teacher(load_teacher(config, self.info.classes))
        set_distilled: Callable[[bool], None] | None = getattr(
            model, "set_distilled_training", None
        )
        if set_distilled is not None:
            set_distilled(True)

    def see_training_labels(self, labels: NDArray[np.int64] | None) -> None:
        """Take the weights of the classes from the training images, or from the options.

        Raises:
            ValueError: there is not one weight per class.
        """
        given, classes = self.config.loss.class_weights, len(self.info.classes)
        if given == "none":
            self.class_weights = None
        elif given == "balanced":
            counts = np.bincount(np.asarray(labels), minlength=classes)
            self.class_weights = balanced_weights(torch.from_numpy(counts))
        else:
            if len(given) != classes:
                raise ValueError(
                    f"task.loss.class_weights holds {len(given)} weights for {classes} classes: "
                    f"{', '.join(self.info.classes[:10])}{', …' if classes > 10 else ''}"
                )
            self.class_weights = torch.tensor(given)

    def set_teacher(self, teacher: Teacher) -> None:
        """Learn from ``teacher``, seen through this task's normalisation."""
        teacher.match(self.preprocess.mean, self.preprocess.std)
        self._teacher[:] = [teacher]

    @property
    def teacher(self) -> Teacher | None:
        """The teacher, where there is one."""
        return self._teacher[0] if self._teacher else None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> ClassificationTask:
        """Move the hidden teacher too."""
        for teacher in self._teacher:
            teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def input_format(self) -> dict[str, Any]:
        """Classes, and how images are scaled and cropped."""
        steps = ClassificationEvalTransform(self.transform_options)
        return {"classes": list(self.info.classes)} | super().input_format() | steps.description()

    def transform(self, *, training: bool) -> Transform:
        """Augmentation for training, scale and crop otherwise."""
        options = self.transform_options
        if training:
            return ClassificationTrainTransform(options, self.info)
        return ClassificationEvalTransform(options)

    def training_step(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """``loss``, and with a teacher its parts ``labels`` and ``teacher``."""
        images, labels = self.mixed(batch, step)
        output = model(images)
        heads = list(output) if isinstance(output, (tuple, list)) else [output]
        config = self.config
        parts: dict[str, Tensor] = {}
        if self.teacher is None:
            loss = torch.stack([self._label_loss(head, labels) for head in heads]).mean()
        else:
            weight = config.distill.weight
            parts["labels"] = self._label_loss(heads[0], labels)
            parts["teacher"] = distillation_loss(heads[-1], self.teacher(images), config.distill)
            loss = (1 - weight) * parts["labels"] + weight * parts["teacher"]
        late = config.self_distill.weight > 0 and step.progress >= config.self_distill.start
        if late and step.averaged is not None:
            with torch.no_grad():
                goal = mean_of_heads(step.averaged(images))
            parts["averaged"] = self_distillation_loss(heads[0], goal)
            loss = loss + config.self_distill.weight * parts["averaged"]
        return {"loss": loss, **parts}

    def _label_loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        return label_loss(logits, labels, self.config.loss, self.class_weights)

    def mixed(self, batch: Batch, step: Step) -> tuple[Tensor, Tensor]:
        """Normalised, erased and mixed images (B, 3, H, W); labels (B,), or (B, K) when mixed."""
        images = self.preprocess(batch.images)
        if self.config.erase:
            keys = sample_keys(step.seed, step.epoch, batch.index.tolist())
            images = erase_batch(images, keys, self.config.erase, "pixel")
        labels = labels_of(batch)
        if not mixes(self.config.mix):
            return images, labels
        return mixup_batch(
            images,
            labels,
            self.config.mix,
            classes=len(self.info.classes),
            seed=step.seed,
            epoch=step.epoch,
            batch_index=step.batch,
            rank=step.rank,
        )

    def raw_outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """``logits`` (B, K) of normalised images (B, 3, H, W)."""
        return {"logits": mean_of_heads(model(images))}

    def agreement(self, before: dict[str, Tensor], after: dict[str, Tensor]) -> Tensor:
        """(B,) 1 where the best class is the same, else 0."""
        return (before["logits"].argmax(-1) == after["logits"].argmax(-1)).float()

    def decode(self, raw: dict[str, Tensor], batch: Batch) -> list[Prediction]:
        """All classes of every image, best first."""
        self._require_classes(raw["logits"])
        best = raw["logits"].float().softmax(-1).cpu().sort(dim=-1, descending=True, stable=True)
        found: list[Prediction] = []
        for index, name in enumerate(batch.names):
            order = best.indices[index].tolist()
            found.append(
                ClassificationPrediction(
                    name=name,
                    original_size=batch.original_sizes[index],
                    classes=tuple(self.info.classes[label] for label in order),
                    probabilities=tuple(best.values[index].tolist()),
                )
            )
        return found

    def metrics(self) -> torchmetrics.Metric:
        """Loss, top-1, top-5, accuracy per class."""
        # torchmetrics takes a second to import: prediction does without it.
        from castling.tasks.classification.metrics import ClassificationMetrics

        return ClassificationMetrics(len(self.info.classes))

    def evaluation_step(self, model: nn.Module, batch: Batch, metric: torchmetrics.Metric) -> None:
        """Take the logits of one batch into the metric."""
        logits = self.raw_outputs(model, self.preprocess(batch.images))["logits"]
        self._require_classes(logits)
        metric.update(logits, labels_of(batch))

    def _require_classes(self, logits: Tensor) -> None:
        known = len(self.info.classes)
        if logits.shape[1] != known:
            raise ValueError(
                f"the model gives {logits.shape[1]} logits for {known} classes: its card or the "
                "data are those of another model"
            )

    def class_metrics(self, metric: torchmetrics.Metric) -> dict[str, float | None]:
        """Percent right of each class; None for a class without an image."""
        values: list[float | None] = metric.class_accuracy()  # type: ignore[operator]
        return dict(zip(self.info.classes, values, strict=True))

    def class_figures(self, metric: torchmetrics.Metric) -> dict[str, dict[str, float | None]]:
        """Precision, recall and F1 in percent, and number of images, of each class."""
        return {
            name: {
                **{key: None if share is None else 100 * share for key, share in shares.items()},
                "images": images,
            }
            for name, one in zip(self.info.classes, metric.class_figures(), strict=True)  # type: ignore[operator]
            for shares in [one._asdict()]
            for images in [shares.pop("images")]
        }

    def records(self, prediction: Prediction, target: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """Label, best class and its probability."""
        assert isinstance(prediction, ClassificationPrediction)
        row = {
            "label": self.info.classes[int(target["label"])],
            "predicted": prediction.classes[0],
            "probability": round(prediction.probabilities[0], 6),
        }
        return [row]

    def choose_examples(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """Confident mistakes, and right ones of many classes."""
        return report.choose_examples(records)

    def report_parts(self, records: Sequence[Mapping[str, str]]) -> list[ReportPart]:
        """Confusions, classes, examples."""
        return report.report_parts(records, self.info.classes)

    def draw(
        self,
        image: Image.Image,
        prediction: Prediction,
        target: dict[str, Tensor] | None = None,
    ) -> Image.Image:
        """The image with its best classes written below it."""
        assert isinstance(prediction, ClassificationPrediction)
        ranked = zip(prediction.classes[:3], prediction.probabilities[:3], strict=True)
        lines = [(percent(probability, 0), name) for name, probability in ranked]
        if target is not None:
            lines.append(("truth", self.info.classes[int(target["label"])]))
        return with_caption(image, lines)


def labels_of(batch: Batch) -> Tensor:
    """The labels (B,) of a batch of classification."""
    labels = batch.targets["label"]
    assert isinstance(labels, Tensor)
    return labels
