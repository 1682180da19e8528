"""Knowledge distillation from any timm teacher, or from a run of our own."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DistillKind = Literal["none", "hard", "soft"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Learning from a teacher (DeiT, arXiv 2012.12877 §4).

    Attributes:
        kind: "none"; "hard" cross entropy with the class the teacher names; "soft" Kullback-Leibler
            divergence to the teacher's distribution at the given temperature.
        teacher: timm name of the teacher (regnety_160 in the DeiT and LeViT recipes), or a
            folder written by castling train.
        checkpoint: file with the teacher's weights (.safetensors or .pth); empty means the folder's
            own weights, or timm's pretrained ones (needs the network).
        pretrained: where there is no checkpoint, take timm's published weights; without them the
            teacher knows nothing, which serves trials only.
        kwargs: further keyword arguments for timm.create_model of the teacher.
        temperature: softening of both distributions in "soft".
        weight: share of the distillation term in the loss; the labels' share is 1 - weight.
    """

    kind: DistillKind = "none"
    teacher: str = ""
    checkpoint: str = ""
    pretrained: bool = True
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    temperature: float = 3.0
    weight: float = 0.5

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if self.kind != "none" and not self.teacher:
            raise ValueError(
                f"distill.kind is {self.kind!r} but distill.teacher is empty: name one"
            )
        if not 0 <= self.weight <= 1:
            raise ValueError(f"distill.weight must lie in [0, 1], got {self.weight}")
        if self.temperature <= 0:
            raise ValueError(f"distill.temperature must be positive, got {self.temperature}")


class Teacher(nn.Module):
    """A frozen model seen through the student's normalisation of images.

    Args:
        model: (B, 3, H, W) → logits (B, K).
        teacher_normalization: mean and standard deviation per channel the teacher was trained with.
        student_normalization: those the student's images come with.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        model: nn.Module,
        teacher_normalization: tuple[Sequence[float], Sequence[float]],
        student_normalization: tuple[Sequence[float], Sequence[float]],
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        teacher_mean, teacher_std = (torch.tensor(x) for x in teacher_normalization)
        student_mean, student_std = (torch.tensor(x) for x in student_normalization)
        scale = (student_std / teacher_std).view(1, -1, 1, 1)
        shift = ((student_mean - teacher_mean) / teacher_std).view(1, -1, 1, 1)
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, K) for images (B, 3, H, W) normalised for the student."""
        logits = self.model(images * self.scale + self.shift)
        return logits[0] if isinstance(logits, tuple) else logits


def load_teacher(
    config: DistillConfig,
    classes: int,
    normalization: tuple[Sequence[float], Sequence[float]],
) -> Teacher | None:
    """Build the teacher that ``config`` names.

    Args:
        config: says which; kind "none" gives None.
        classes: number of classes K of the student.
        normalization: the mean and standard deviation of the student's images.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        ValueError: the teacher is unknown, its weights do not fit, or it has other classes.
    """
    if config.kind == "none":
        return None
    if config.checkpoint and not Path(config.checkpoint).is_file():
        raise FileNotFoundError(f"distill.checkpoint: no such file: {config.checkpoint}")
    if Path(config.teacher).is_dir():
        from castling.models.saved import open_model

        model, card = open_model(config.teacher)
        if len(card.classes) != classes:
            raise ValueError(
                f"the teacher {config.teacher} knows {len(card.classes)} classes, "
                f"the data {classes}"
            )
        return Teacher(model, (card.mean, card.std), normalization)
    if not timm.is_model(config.teacher.split(".")[0]):
        raise ValueError(
            f"distill.teacher: {config.teacher!r} is neither a timm model nor a folder of a run"
        )
    model = timm.create_model(
        config.teacher,
        pretrained=config.pretrained and not config.checkpoint,
        num_classes=classes,
        **config.kwargs,
    )
    if config.checkpoint:
        from castling.models.saved import load_weights

        load_weights(model, config.checkpoint)
    described = getattr(model, "pretrained_cfg", {})
    own = (described.get("mean", normalization[0]), described.get("std", normalization[1]))
    return Teacher(model, own, normalization)


def distillation_loss(student: Tensor, teacher: Tensor, config: DistillConfig) -> Tensor:
    """Distance of student logits (B, K) to teacher logits (B, K), 0-dimensional.

    Soft: τ²·KL(softmax(t/τ) ‖ softmax(s/τ)), mean over the batch. Hard: −log softmax(s)[argmax t].
    """
    if config.kind == "hard":
        return F.cross_entropy(student, teacher.argmax(dim=1))
    tau = config.temperature
    return tau**2 * F.kl_div(
        F.log_softmax(student.float() / tau, dim=1),
        F.log_softmax(teacher.float() / tau, dim=1),
        reduction="batchmean",
        log_target=True,
    )
