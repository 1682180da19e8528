"""The task of pre-training: a backbone learns from images without labels."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from castling.attention import LinearAngular
from castling.attention.base import AttentionCore
from castling.data.registry import DataInfo, SourceConfig
from castling.data.sample import Batch, Sample
from castling.data.sources.folder import FolderConfig
from castling.data.sources.unlabelled import UnlabelledConfig
from castling.data.transforms.base import Transform, TransformConfig
from castling.data.transforms.classification import ClassificationEvalTransform
from castling.data.transforms.pretraining import PretrainingTransform, PretrainingTransformConfig
from castling.heads.distill_features import DistillFeaturesConfig, FeatureDistiller
from castling.heads.mae import MAEConfig, MaskedAutoencoder
from castling.heads.pretrainer import Pretrainer
from castling.models.dense import head_config, list_heads
from castling.tasks.interface import RecipeLike, Step, Task
from castling.tasks.noise import write_noise_folders
from castling.tasks.prediction import Prediction
from castling.tasks.pretraining import report
from castling.tasks.pretraining.config import PretrainingConfig
from castling.tasks.pretraining.drawing import beside_each_other, packed
from castling.tasks.pretraining.prediction import PretrainingPrediction
from castling.tasks.registry import register_task
from castling.tasks.reporting import ReportPart
from castling.tasks.teacher import check_feature_teacher, load_feature_teacher
from castling.utils.randomness import Keys, keys

if TYPE_CHECKING:
    import torchmetrics

_log = logging.getLogger(__name__)
_MASKS = 6  # stream of random numbers: those of crops and order are others


@register_task(PretrainingConfig)
class PretrainingTask(Task):
    """Trains a :class:`~castling.heads.pretrainer.Pretrainer` by its own loss.

    What is hidden of an image follows from (seed, epoch, image) in training and from the image's
    pixels alone in evaluation, so that losses of several models and epochs are comparable.

    Args:
        config: none so far.
        info: of the data, whatever its targets are.
        transform: image size, normalisation, augmentation.
    """

    headline = "loss"
    maximize = False
    kinds = frozenset({"unlabelled", "classification", "detection", "segmentation"})
    pipeline_tag = "image-feature-extraction"
    prediction_class = PretrainingPrediction
    record_columns = report.COLUMNS
    example_side = 480
    switches = False
    transform_config = PretrainingTransformConfig
    preprocessing_options: ClassVar[tuple[str, ...]] = (
        "image_size",
        "interpolation",
        "crop_fraction",
        "eval_crop",
    )

    transform_options: PretrainingTransformConfig

    def __init__(
        self, config: PretrainingConfig, info: DataInfo, transform: TransformConfig
    ) -> None:
        super().__init__(config, dataclasses.replace(info, classes=[]), transform)

    @classmethod
    def read_as(cls, source: SourceConfig) -> SourceConfig:
        """All images below a folder, where classes would leave out those beside them."""
        if isinstance(source, FolderConfig) and source.layout == "auto":
            return UnlabelledConfig(path=source.path)
        return source

    @classmethod
    def check(cls, recipe: RecipeLike) -> None:
        """Refuse a model without a head of this task, and a teacher that cannot be loaded."""
        name = str(recipe.model.name)
        heads = list_heads("pretraining")
        head = name.split("/")[0]
        if head not in heads:
            raise ValueError(
                f"model.name is {name}; pre-training needs HEAD/BACKBONE, such as "
                f"mae/castling_deit_small_patch16_224 or simmim/cas_vit_xs. Heads: "
                f"{', '.join(heads)}"
            )
        options = head_config(head, recipe.model.head)
        if isinstance(options, DistillFeaturesConfig):
            check_feature_teacher(options)
        fixed = isinstance(options, MAEConfig) and options.positions == "fixed"
        if fixed and recipe.model.pretrained:
            raise ValueError(
                "model.pretrained brings a learned table of positions, which fixed ones would "
                "replace: set model.head.positions to learned"
            )

    @classmethod
    def generate_images(cls, folder: Path, count: int) -> SourceConfig:
        """Noise of odd sizes."""
        return write_noise_folders(folder, count)

    def model_arguments(self) -> dict[str, Any]:
        """None: there are no classes."""
        return {}

    def prepare_training(self, model: nn.Module) -> None:
        """Load the teacher, where there is one.

        Raises:
            ValueError: the model or its sizes do not fit.
        """
        pretrainer = self._pretrainer(model)
        height, width = self.transform_options.size
        if height % pretrainer.multiple or width % pretrainer.multiple:
            raise ValueError(
                f"data.transform.image_size is {height}×{width}; the model needs sides that are "
                f"multiples of {pretrainer.multiple}"
            )
        grows = isinstance(model, MaskedAutoencoder) and any(map(_grows, model.modules()))
        if grows:
            _log.warning(
                "linear_angular with kv_scale 1 weighs the sum over tokens against the identity by "
                "the number of tokens, and pre-training sees a part of them: set model.attention "
                "to {name: linear_angular, kv_scale: tokens}, here and in the final task"
            )

    def _pretrainer(self, model: nn.Module) -> Pretrainer:
        if not isinstance(model, Pretrainer):
            raise ValueError(f"{type(model).__name__} is no model of pre-training")
        if isinstance(model, FeatureDistiller) and not model.has_teacher:
            teacher = load_feature_teacher(model.config)
            teacher.match(self.preprocess.mean, self.preprocess.std)
            model.set_teacher(teacher.to(next(model.parameters()).device))
        return model

    def input_format(self) -> dict[str, Any]:
        """How images are scaled and cropped."""
        steps = ClassificationEvalTransform(self.transform_options)
        return super().input_format() | steps.description()

    def transform(self, *, training: bool) -> Transform:
        """Augmentation for training, scale and crop otherwise; targets are dropped."""
        return PretrainingTransform(self.transform_options, self.info if training else None)

    def training_step(self, model: nn.Module, batch: Batch, step: Step) -> dict[str, Tensor]:
        """``loss``, the mean of the images'."""
        own = keys(step.seed, step.epoch, batch.index.cpu().numpy(), _MASKS)
        images = self.preprocess(batch.images)
        return {"loss": self._pretrainer(model).image_losses(images, own).mean()}

    def raw_outputs(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """``features`` (B, C, h, w) of whole images: what an exported model gives."""
        raw: dict[str, Tensor] = model(images)
        return raw

    def decode(self, outputs: dict[str, Tensor], batch: Batch) -> list[Prediction]:
        """Names alone: features are no statement about an image."""
        return [
            PretrainingPrediction(name=name, original_size=size)
            for name, size in zip(batch.names, batch.original_sizes, strict=True)
        ]

    def predict(self, model: nn.Module, batch: Batch) -> list[Prediction]:
        """Loss and pictures of every image."""
        pretrainer = self._pretrainer(model)
        images, own = self.preprocess(batch.images), keys_of(batch.images)
        losses = pretrainer.image_losses(images, own).tolist()
        shown = {"image": images, **pretrainer.pictures(images, own)}
        pixels = {name: self._in_pixels(each) for name, each in shown.items()}
        return [
            PretrainingPrediction(
                name=batch.names[row],
                original_size=batch.original_sizes[row],
                loss=losses[row],
                pictures=tuple((name, packed(each[row])) for name, each in pixels.items()),
            )
            for row in range(len(batch))
        ]

    def _in_pixels(self, images: Tensor) -> Tensor:
        """Normalised images in [0, 1]."""
        mean, std = (images.new_tensor(x) for x in (self.preprocess.mean, self.preprocess.std))
        return images * std.view(-1, 1, 1) + mean.view(-1, 1, 1)

    def metrics(self) -> torchmetrics.Metric:
        """The mean loss."""
        # torchmetrics takes a second to import: prediction does without it.
        from castling.tasks.pretraining.metrics import MeanLoss

        return MeanLoss()

    def evaluation_step(self, model: nn.Module, batch: Batch, metric: torchmetrics.Metric) -> None:
        """Take the losses of one batch into the metric."""
        own = keys_of(batch.images)
        metric.update(self._pretrainer(model).image_losses(self.preprocess(batch.images), own))

    def records(self, prediction: Prediction, target: Mapping[str, Tensor]) -> list[dict[str, Any]]:
        """The loss."""
        assert isinstance(prediction, PretrainingPrediction)
        assert prediction.loss is not None
        return [{"loss": round(prediction.loss, 6)}]

    def choose_examples(self, records: Sequence[Mapping[str, Any]]) -> list[int]:
        """From the lowest to the highest loss."""
        return report.choose_examples(records)

    def example(
        self,
        sample: Sample,
        records: Sequence[Mapping[str, Any]],
        position: int,
        predict: Callable[[], Prediction],
    ) -> Image.Image:
        """Image, what is masked, and what was made of it."""
        return self.draw(Image.new("RGB", (1, 1)), predict())

    def report_parts(self, records: Sequence[Mapping[str, str]]) -> list[ReportPart]:
        """Spread of the losses, and examples."""
        return report.report_parts(records)

    def draw(
        self,
        image: Image.Image,
        prediction: Prediction,
        target: dict[str, Tensor] | None = None,
    ) -> Image.Image:
        """The prediction's pictures beside each other; the image itself where it has none."""
        assert isinstance(prediction, PretrainingPrediction)
        return beside_each_other(prediction.pictures) if prediction.pictures else image.copy()


def keys_of(images: Tensor) -> Keys:
    """(B,) keys of images (B, 3, H, W) by their pixels: the same in any order, split and batch."""
    digests = (
        hashlib.blake2b(image.tobytes(), digest_size=8).digest()
        for image in images.to(torch.uint8).cpu().contiguous().numpy()
    )
    return np.array([int.from_bytes(digest, "little") for digest in digests], dtype=np.uint64)


def _grows(module: nn.Module) -> bool:
    """Whether an attention weighs identity and sum over tokens by the number of tokens."""
    config = module.config if isinstance(module, AttentionCore) else None
    return (
        isinstance(config, LinearAngular)
        and config.constant == "identity"
        and config.kv_scale != "tokens"
    )
