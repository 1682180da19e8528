"""Mixup and CutMix, seeded by the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat
from torch import Tensor
from torch.nn import functional as F

from castling.utils.checks import check_fields
from castling.utils.randomness import global_generators_kept, keys, seed_global_generators

_MIXING = 3  # a stream of random numbers of its own


@dataclass(frozen=True, kw_only=True)
class MixConfig:
    """Whether and how the images of a batch are mixed with one another.

    Attributes:
        mixup: α of mixup's Beta(α, α) distribution; 0 for none.
        cutmix: α of CutMix's Beta(α, α) distribution; 0 for none.
        probability: that a batch is mixed at all.
        switch_probability: of CutMix when both are on.
    """

    mixup: NonNegativeFloat = 0.0
    cutmix: NonNegativeFloat = 0.0
    probability: ClosedUnitInterval = 1.0
    switch_probability: ClosedUnitInterval = 0.5

    def __post_init__(self) -> None:
        check_fields(self, "mixing")


def mixes(config: MixConfig) -> bool:
    """Whether batches are mixed at all, so that targets are soft."""
    return config.probability > 0 and (config.mixup > 0 or config.cutmix > 0)


def mixup_batch(
    images: Tensor,
    targets: Tensor,
    config: MixConfig,
    *,
    classes: int,
    seed: int,
    epoch: int,
    batch_index: int,
    rank: int = 0,
) -> tuple[Tensor, Tensor]:
    """Mix a batch with its own reverse, by timm's ``Mixup``.

    mixup: λx + (1−λ)x', λ ~ Beta(α, α) (Zhang et al., 2018); CutMix pastes a rectangle whose share
    of the area is 1−λ (Yun et al., 2019). Targets are mixed alike. The same (seed, epoch,
    batch_index, rank) gives the same mixture; no global generator is advanced.

    Args:
        images: (B, 3, H, W), left unchanged.
        targets: (B,) of class numbers.
        config: α's and probabilities.
        classes: number of classes C.
        seed: of the run.
        epoch: from 0.
        batch_index: of the batch in the epoch.
        rank: of the process; processes mix differently.

    Returns:
        Images (B, 3, H, W) and soft targets (B, C) of float32. Of an odd batch the last image
        stays as it is. Without mixing only the targets change form.
    """
    from timm.data.mixup import Mixup

    soft = F.one_hot(targets.long(), classes).float()
    even = len(images) // 2 * 2
    if not mixes(config) or even == 0:
        return images, soft
    mix = Mixup(
        mixup_alpha=config.mixup,
        cutmix_alpha=config.cutmix,
        prob=config.probability,
        switch_prob=config.switch_probability,
        label_smoothing=0.0,
        num_classes=classes,
    )
    with global_generators_kept():
        seed_global_generators(int(keys(seed, _MIXING, epoch, batch_index, rank)[0]))
        mixed, mixed_targets = mix(images[:even].clone(), targets[:even].long())
    if even == len(images):
        return mixed, mixed_targets.float()
    return torch.cat([mixed, images[even:]]), torch.cat([mixed_targets.float(), soft[even:]])
