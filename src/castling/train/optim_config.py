"""The sections of a recipe that decide how weights change: optimiser, schedule, average, limits."""

from __future__ import annotations

import dataclasses
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from castling.utils.checks import LeftOpenUnitInterval, RightOpenUnitInterval, check_fields


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser.

    Attributes:
        name: any optimiser of timm.optim.list_optimizers(); momentum is 0.9 where it has one.
        lr: peak learning rate, for lr_batch images per step.
        lr_batch: images per step that lr is meant for; the rate used is
            lr · (images per step)/lr_batch. 0: lr is used as it stands.
        weight_decay: never applied to 1-D tensors (norms, biases) nor to scalars, position tables
            and what the model's no_weight_decay() names.
        betas: the two momenta of Adam-like optimisers; empty keeps the optimiser's own.
        layer_decay: each layer's learning rate is this factor times that of the layer above it;
            1 is off.
        lr_scale: pattern of parameter names → factor of the learning rate, such as
            {"backbone.*": 0.1}; where several match a name, the last one counts.
    """

    name: str = "adamw"
    lr: PositiveFloat = 1e-3
    lr_batch: NonNegativeInt = 0
    weight_decay: NonNegativeFloat = 0.05
    betas: tuple[RightOpenUnitInterval, RightOpenUnitInterval] | None = None
    layer_decay: LeftOpenUnitInterval = 1.0
    lr_scale: dict[str, PositiveFloat] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "optim")
        if self.betas is not None:
            object.__setattr__(self, "betas", tuple(self.betas))
            if len(self.betas) != 2:
                raise ValueError(f"optim.betas must hold two numbers, got {self.betas}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the steps.

    Attributes:
        kind: "cosine" from the peak to min_lr; "poly" as well, by (1 - share of the steps) to a
            power; "steps" multiplies the peak by drop_factor at every epoch of drop_epochs;
            "constant" stays at the peak.
        power: for "poly": 1 is a straight line.
        drop_epochs: for "steps": epochs after which the rate drops, counted from 1.
        drop_factor: for "steps".
        cosine_epochs: for "cosine": epochs after which it reaches min_lr, where training ends
            before; empty means the end of training.
        warmup_epochs: linear rise from warmup_lr to the peak, in epochs (fractions allowed).
        warmup_steps: the same in steps; wins over warmup_epochs when positive.
        warmup_lr: learning rate of the first step.
        min_lr: learning rate at the end of "cosine" and "poly". Like warmup_lr it is not scaled by
            lr_batch.
    """

    kind: Literal["cosine", "poly", "steps", "constant"] = "cosine"
    power: PositiveFloat = 0.9
    drop_epochs: tuple[PositiveInt, ...] = ()
    drop_factor: LeftOpenUnitInterval = 0.1
    cosine_epochs: PositiveInt | None = None
    warmup_epochs: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    warmup_lr: NonNegativeFloat = 1e-6
    min_lr: NonNegativeFloat = 1e-6

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "schedule")
        if (self.kind == "steps") != bool(self.drop_epochs):
            raise ValueError(
                f"schedule.kind is {self.kind!r}, drop_epochs are {list(self.drop_epochs)}: "
                "steps needs the epochs after which the rate drops, and nothing else takes them"
            )
        if self.cosine_epochs is not None and self.kind != "cosine":
            raise ValueError(f"schedule.cosine_epochs is for cosine, the kind is {self.kind!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights; where it is on, it is what is evaluated and saved.

    Attributes:
        decay: share of the old average kept at each step; 0 is off.
        warmup: the decay begins near 0 and rises to its value, so that early averages do not hold
            on to the initial weights; in steps, 0 is off.
        rise: how it rises: "exponential" as decay·(1 − exp(−step/warmup)); "ratio" as
            min(decay, (1 + step)/(warmup + step)), PicoDet's with a warmup of 10.
    """

    decay: RightOpenUnitInterval = 0.0
    warmup: NonNegativeInt = 0
    rise: Literal["exponential", "ratio"] = "exponential"

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "ema")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Gradient clipping.

    Attributes:
        mode: "none"; "norm" of all gradients together; "value" of each entry; "adaptive" each
            unit's norm against its weights' norm (AGC, arXiv 2102.06171).
        value: the bound, in the units of the mode.
    """

    mode: Literal["none", "norm", "value", "adaptive"] = "none"
    value: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "clip")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegularizeConfig:
    """What else shapes training.

    Attributes:
        drop_path_ramp: raise stochastic depth from 0 to its rate with progress (QT-ViT).
        batchnorm_images: re-estimate the statistics of BatchNorm on this many training images
            before each evaluation (QT-ViT: 16000); 0 is off.
        freeze_batchnorm: keep all BatchNorm layers in evaluation mode while training.
    """

    drop_path_ramp: bool = False
    batchnorm_images: NonNegativeInt = 0
    freeze_batchnorm: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "regularize")
