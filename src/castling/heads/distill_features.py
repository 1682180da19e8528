"""Features of a large, frozen model learned by a small one, from images without labels.

Whitened features are the goal: each place's vector of the teacher normalised over its channels
without weights (Wei et al., "Contrastive Learning Rivals Masked Image Modeling in Fine-tuning via
Feature Distillation", 2022, arXiv 2205.14141, §3), so that a few channels of large values do not
decide. The student reaches the teacher's channels by a linear projection, which is dropped later.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.heads.pretrainer import Pretrainer
from castling.models.backbone import Backbone
from castling.models.dense import HeadConfig, MakeBackbone, register_head
from castling.models.dense_builder import plain_backbone
from castling.models.skeleton import without_memory
from castling.utils.randomness import Keys

if TYPE_CHECKING:
    from jsonargparse.typing import NonNegativeInt


@dataclass(frozen=True, kw_only=True)
class DistillFeaturesConfig(HeadConfig):
    """Options of learning a teacher's features.

    Attributes:
        teacher: its name in timm's registry; any model that gives feature maps.
        teacher_checkpoint: its weights: a file, or the folder of a run; empty means timm's
            pretrained ones (needs the network).
        teacher_pretrained: where there is no checkpoint, take timm's weights; without them the
            teacher knows nothing, which serves trials only.
        teacher_kwargs: further keyword arguments of timm.create_model of the teacher.
        stride: of the student's map that learns, in pixels; 0 for its coarsest.
    """

    name: ClassVar[str] = "distill_features"
    trial_options: ClassVar[Mapping[str, Any]] = {
        "teacher_checkpoint": "",
        "teacher_pretrained": False,
    }

    teacher: str = "vit_small_patch14_dinov2.lvd142m"
    teacher_checkpoint: str = ""
    teacher_pretrained: bool = True
    teacher_kwargs: dict[str, Any] = field(default_factory=dict)
    stride: NonNegativeInt = 0


class _Hidden:
    """Holds the teacher out of parameters and state; copies of the student share it."""

    def __init__(self) -> None:
        self.teacher: nn.Module | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> _Hidden:
        return self


class FeatureDistiller(Pretrainer):
    """Backbone and projection; the teacher is set by the task and is no part of the state.

    Args:
        config: its options.
        backbone: with one map.
        channels: of the teacher's map.
    """

    def __init__(self, config: DistillFeaturesConfig, backbone: Backbone, channels: int) -> None:
        super().__init__(backbone)
        self.config = config
        self.projection = nn.Conv2d(backbone.channels[0], channels, 1)
        self._hidden = _Hidden()

    def set_teacher(self, teacher: nn.Module) -> None:
        """Learn from ``teacher``: (B, 3, H, W), normalised as the student's → (B, D, h', w')."""
        self._hidden.teacher = teacher

    @property
    def has_teacher(self) -> bool:
        """Whether a teacher was set."""
        return self._hidden.teacher is not None

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> FeatureDistiller:
        """Move the hidden teacher too."""
        if self._hidden.teacher is not None:
            self._hidden.teacher._apply(fn, recurse)
        return super()._apply(fn, recurse)

    def _both(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Student's and teacher's features (B, D, h, w), on the student's grid."""
        if self._hidden.teacher is None:
            raise ValueError("the head distill_features has no teacher: call set_teacher first")
        own = self.projection(self.backbone(images)[-1]).float()
        with torch.no_grad():
            goal = self._hidden.teacher(images).float()
            size = (own.shape[-2], own.shape[-1])
            if goal.shape[-2:] != size:
                goal = F.interpolate(goal, size, mode="bilinear", antialias=True)
            goal = F.layer_norm(goal.permute(0, 2, 3, 1), goal.shape[1:2]).permute(0, 3, 1, 2)
        return own, goal

    def image_losses(self, images: Tensor, keys: Keys) -> Tensor:
        """Smooth L1 to the whitened features; nothing is hidden, so ``keys`` do not matter."""
        own, goal = self._both(images)
        return F.smooth_l1_loss(own, goal, reduction="none").mean((1, 2, 3))

    def pictures(self, images: Tensor, keys: Keys) -> dict[str, Tensor]:
        """``teacher`` and ``student``: the three principal components of the teacher's features.

        Both are drawn by the components of the teacher's, two standard deviations to each side.
        """
        both = self._both(images)
        shape = both[0].shape[-2:]
        own, goal = (each.flatten(2).transpose(1, 2) for each in both)
        mean = goal.mean(1, keepdim=True)
        _, sizes, axes = torch.linalg.svd(goal - mean, full_matrices=False)
        count = min(3, axes.shape[1])
        scale = sizes[:, None, :count] / goal.shape[1] ** 0.5 + 1e-6
        height, width = images.shape[-2:]

        def drawn(features: Tensor) -> Tensor:
            scores = ((features - mean) @ axes[:, :count].transpose(1, 2) / scale).clamp(-2, 2)
            scores = F.pad(scores, (0, 3 - count))
            return F.interpolate(scores.transpose(1, 2).unflatten(2, shape), (height, width))

        return {"teacher": drawn(goal), "student": drawn(own)}


@register_head(DistillFeaturesConfig, task="pretraining")
def distill_features(
    config: DistillFeaturesConfig, make_backbone: MakeBackbone, num_classes: int
) -> FeatureDistiller:
    """Any backbone that gives feature maps; ``num_classes`` does not matter."""
    teacher = without_memory(lambda: plain_backbone(config.teacher, config.teacher_kwargs))
    assert isinstance(teacher, Backbone)
    backbone = make_backbone((config.stride,)) if config.stride else make_backbone.coarsest()
    return FeatureDistiller(config, backbone, teacher.channels[0])
