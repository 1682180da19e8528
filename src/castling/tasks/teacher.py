"""Teachers of knowledge distillation: any timm model, or a run of our own.

Of a classifier the logits teach, in pre-training (the head distill_features) the feature maps.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat
from torch import Tensor, nn
from torch.nn import functional as F

from castling.heads.distill_features import DistillFeaturesConfig
from castling.models.backbone import Backbone
from castling.models.dense_builder import plain_backbone
from castling.models.dense_weights import fill_backbone
from castling.models.names import timm_name
from castling.models.published import published_weights
from castling.models.saved import open_model
from castling.models.starting_weights import normalisation_of
from castling.surgery import load_checkpoint
from castling.utils.checks import check_fields
from castling.utils.text import did_you_mean

#: What the options of a teacher of features begin with.
_TEACHER = "model.head.teacher_"

DistillKind = Literal["none", "hard", "soft"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from a teacher (DeiT, arXiv 2012.12877 §4).

    Attributes:
        kind: ``"none"``; ``"hard"`` cross entropy with the class the teacher names; ``"soft"``
            Kullback-Leibler divergence to the teacher's distribution at the given temperature.
        teacher: timm name of the teacher (regnety_160 in the DeiT and LeViT recipes), or a
            folder written by castling train.
        checkpoint: file with the teacher's weights (.safetensors or .pth); empty means the folder's
            own weights, or timm's pretrained ones (needs the network).
        pretrained: where there is no checkpoint, take timm's published weights; without them the
            teacher knows nothing, which serves trials only.
        kwargs: further keyword arguments for timm.create_model of the teacher.
        temperature: softening of both distributions in ``"soft"``.
        weight: share of the distillation term in the loss; the labels' share is 1 - weight.
    """

    kind: DistillKind = "none"
    teacher: str = ""
    checkpoint: str = ""
    pretrained: bool = True
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    temperature: PositiveFloat = 3.0
    weight: ClosedUnitInterval = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "task.distill")
        if self.kind != "none" and not self.teacher:
            raise ValueError(
                f"task.distill.kind is {self.kind!r} but task.distill.teacher is empty: name one"
            )


class Teacher(nn.Module):
    """A frozen model that takes images with the student's normalisation.

    Args:
        model: (B, 3, H, W) → logits (B, K), or a map of features.
        mean: per channel, that the model was trained with; None where it is the student's.
        std: as ``mean``.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.mean, self.std = mean, std
        self.register_buffer("scale", torch.ones(1, 3, 1, 1))
        self.register_buffer("shift", torch.zeros(1, 3, 1, 1))

    def match(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Expect images normalised with the student's ``mean`` and ``std``."""
        own_mean, own_std = (torch.tensor(x) for x in (self.mean or mean, self.std or std))
        student_mean, student_std = torch.tensor(mean), torch.tensor(std)
        self.scale = (student_std / own_std).view(1, -1, 1, 1).to(self.scale.device)
        shift = (student_mean - own_mean) / own_std
        self.shift = shift.view(1, -1, 1, 1).to(self.shift.device)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """The model's (first) output for images (B, 3, H, W) normalised for the student."""
        outputs = self.model(images * self.scale + self.shift)
        return outputs[0] if isinstance(outputs, tuple) else outputs


def check_teacher(config: DistillConfig) -> None:
    """Refuse a teacher that cannot be loaded, before any work.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the teacher is neither a timm model nor a run's folder, or would teach nothing.
    """
    if config.kind == "none":
        if config.teacher or config.checkpoint:
            raise ValueError(
                "task.distill names a teacher, but task.distill.kind is none, so that it would "
                "teach nothing: set the kind to soft or hard"
            )
        return
    if Path(config.teacher).is_dir() and (config.checkpoint or config.kwargs):
        raise ValueError(
            "task.distill.checkpoint and .kwargs are for timm models: a run's folder has its own "
            "weights and arguments"
        )
    if config.checkpoint and not Path(config.checkpoint).is_file():
        raise FileNotFoundError(f"task.distill.checkpoint: no such file: {config.checkpoint}")
    name = config.teacher.split(".")[0]
    if not Path(config.teacher).is_dir() and not timm.is_model(name):
        raise ValueError(
            f"task.distill.teacher: {config.teacher!r} is neither a timm model nor a folder of a "
            f"run{did_you_mean(name, timm.list_models())}"
        )


def load_teacher(config: DistillConfig, classes: Sequence[str]) -> Teacher:
    """Build the teacher that ``config`` names.

    Args:
        config: says which.
        classes: names of the student's K classes, in the order of its labels.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the teacher is unknown, its weights do not fit, or it has other classes.
    """
    check_teacher(config)
    if Path(config.teacher).is_dir():
        model, card = open_model(config.teacher)
        if card.classes != list(classes):
            raise ValueError(
                f"the teacher {config.teacher} knows the classes {', '.join(card.classes[:5])} …, "
                f"the data {', '.join(classes[:5])} …: names and order must be the same"
            )
        return Teacher(model, card.mean, card.std)
    overlay: dict[str, Any] = {}
    if config.pretrained and not config.checkpoint:
        overlay = published_weights(config.teacher, "task.distill.")
    model = timm.create_model(
        config.teacher,
        pretrained=config.pretrained and not config.checkpoint,
        num_classes=len(classes),
        **({"pretrained_cfg_overlay": overlay} if overlay else {}),
        **config.kwargs,
    )
    if config.checkpoint:
        load_checkpoint(model, config.checkpoint)
    described = getattr(model, "pretrained_cfg", {})
    return Teacher(model, described.get("mean"), described.get("std"))


class FeatureMap(nn.Module):
    """The map of a backbone, for images of any size.

    Args:
        backbone: with one map.
    """

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) → (B, D, h, w); sides are scaled to the nearest multiples of the stride."""
        (stride,) = self.backbone.strides
        height, width = (max(1, round(side / stride)) * stride for side in images.shape[-2:])
        if images.shape[-2:] != (height, width):
            images = F.interpolate(images, (height, width), mode="bilinear", antialias=True)
        return self.backbone(images)[-1]


def check_feature_teacher(config: DistillFeaturesConfig) -> None:
    """Refuse a teacher of features that cannot be loaded, before any work.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the teacher is no timm model.
        NoPublishedWeightsError: its weights can be neither found nor downloaded.
    """
    checkpoint = config.teacher_checkpoint
    if checkpoint and not Path(checkpoint).exists():
        raise FileNotFoundError(f"model.head.teacher_checkpoint: there is nothing at {checkpoint}")
    try:
        name = timm_name(config.teacher)
    except ValueError as error:
        raise ValueError(f"model.head.teacher: {error}") from error
    if config.teacher_pretrained and not checkpoint:
        published_weights(name, _TEACHER)


def load_feature_teacher(config: DistillFeaturesConfig) -> Teacher:
    """Build the teacher of features that ``config`` names; errors as of the check."""
    check_feature_teacher(config)
    name, checkpoint = timm_name(config.teacher), config.teacher_checkpoint
    pretrained = config.teacher_pretrained and not checkpoint
    kwargs = dict(config.teacher_kwargs)
    if pretrained and (overlay := published_weights(name, _TEACHER)):
        kwargs["pretrained_cfg_overlay"] = overlay
    backbone = plain_backbone(name, kwargs, pretrained=pretrained)
    if checkpoint:
        fill_backbone(backbone, name, kwargs, checkpoint)
    mean, std = normalisation_of(name, checkpoint) or (None, None)
    return Teacher(FeatureMap(backbone), mean, std)
