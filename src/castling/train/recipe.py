"""A recipe: everything that decides how a training run goes, as nested frozen dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from castling.data import DataConfig
from castling.tasks import DistillConfig, LossConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model.

    Attributes:
        name: a name of timm's registry, ours included: castling models lists them.
        kwargs: further keyword arguments of timm.create_model, such as img_size or patch_size.
            The image size of the data is passed as img_size to models that take it.
        attention: name of an attention, or a dictionary of name and options, put into the model;
            empty keeps what the model has.
        where: names of the attention layers to convert, "*" allowed; or a plan, a dictionary from
            such names to the attention of each, null leaving a layer as it is; empty means all.
        pretrained: start from timm's published weights (needs the network).
        checkpoint: start from these weights: a run's folder, .safetensors or .pth.
        drop_path: final rate of stochastic depth; empty keeps the model's own.
    """

    name: str = "castling_deit_pico"
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    attention: str | dict[str, Any] | None = None
    where: list[str] | dict[str, Any] | None = None
    pretrained: bool = False
    checkpoint: str = ""
    drop_path: float | None = None

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if self.drop_path is not None and not 0 <= self.drop_path < 1:
            raise ValueError(f"model.drop_path must lie in [0, 1), got {self.drop_path}")
        if self.pretrained and self.checkpoint:
            raise ValueError("model.pretrained and model.checkpoint exclude each other")


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser.

    Attributes:
        name: any optimiser of timm.optim.list_optimizers().
        lr: peak learning rate, for lr_batch images per step.
        lr_batch: images per step that lr is meant for; the rate used is
            lr · (images per step)/lr_batch. 0: lr is used as it stands.
        weight_decay: never applied to 1-D tensors (norms, biases) nor to scalars, position tables
            and what the model's no_weight_decay() names.
        betas: the two momenta of Adam-like optimisers; empty keeps the optimiser's own.
        eps: the optimiser's ε; empty keeps its own.
        momentum: for optimisers of the SGD kind.
        layer_decay: each layer's learning rate is this factor times that of the layer above it;
            1 is off.
        no_decay: name patterns of further parameters without weight decay.
    """

    name: str = "adamw"
    lr: float = 1e-3
    lr_batch: int = 0
    weight_decay: float = 0.05
    betas: list[float] | None = None
    eps: float | None = None
    momentum: float = 0.9
    layer_decay: float = 1.0
    no_decay: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if self.lr <= 0:
            raise ValueError(f"optim.lr must be positive, got {self.lr}")
        if self.lr_batch < 0:
            raise ValueError(f"optim.lr_batch must not be negative, got {self.lr_batch}")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"optim.layer_decay must lie in (0, 1], got {self.layer_decay}")
        if self.betas is not None and len(self.betas) != 2:
            raise ValueError(f"optim.betas must hold two numbers, got {self.betas}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over the steps.

    Attributes:
        kind: "cosine" from the peak to min_lr; "constant" stays at the peak.
        warmup_epochs: linear rise from warmup_lr to the peak, in epochs (fractions allowed).
        warmup_steps: the same in steps; wins over warmup_epochs when positive.
        warmup_lr: learning rate of the first step.
        min_lr: learning rate at the end of the cosine. Like warmup_lr it is not scaled by lr_batch.
    """

    kind: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = 0.0
    warmup_steps: int = 0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6


@dataclasses.dataclass(frozen=True, kw_only=True)
class EmaConfig:
    """Exponential moving average of the weights; where it is on, it is what is evaluated and saved.

    Attributes:
        decay: share of the old average kept at each step; 0 is off.
        warmup: the decay begins near 0 and rises to its value as decay·(1 − exp(−step/warmup)),
            so that early averages do not hold on to the initial weights; in steps, 0 is off.
        self_distill: weight of a binary cross entropy towards the averaged model's own
            predictions (QT-ViT-4 to -6); 0 is off.
        self_distill_start: training progress in [0, 1] at which that term sets in.
    """

    decay: float = 0.0
    warmup: int = 0
    self_distill: float = 0.0
    self_distill_start: float = 0.25

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if not 0 <= self.decay < 1:
            raise ValueError(f"ema.decay must lie in [0, 1), got {self.decay}")
        if self.self_distill and not self.decay:
            raise ValueError("ema.self_distill needs the moving average: set ema.decay")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Gradient clipping.

    Attributes:
        mode: "none"; "norm" of all gradients together; "value" of each entry; "adaptive" each
            unit's norm against its weights' norm (AGC, arXiv 2102.06171).
        value: the bound, in the units of the mode.
    """

    mode: Literal["none", "norm", "value", "adaptive"] = "none"
    value: float = 1.0

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if self.value <= 0:
            raise ValueError(f"clip.value must be positive, got {self.value}")


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
    batchnorm_images: int = 0
    freeze_batchnorm: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where and how it runs; may be changed when a run is resumed.

    Attributes:
        accelerator: "auto" takes a GPU where there is one.
        devices: number of processes, one device each; 0 means all GPUs, or one CPU process.
        nodes: number of machines.
        strategy: as Lightning names it: "auto", "ddp", "ddp_spawn"; a whole model in each process.
        precision: "32", "bf16" or "16" mixed on a GPU; a CPU always computes in 32, because it is
            slower in the others.
        accumulate: batches whose gradients are added up to one step.
        workers: background processes that load images; empty keeps data.workers.
        deterministic: insist on algorithms that give the same bits each time.
        compile: pass the model through torch.compile.
        channels_last: keep images and convolutions in channels-last memory layout.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: int = 0
    nodes: int = 1
    strategy: str = "auto"
    precision: Literal["32", "bf16", "16"] = "32"
    accumulate: int = 1
    workers: int | None = None
    deterministic: bool = False
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if self.accumulate < 1 or self.nodes < 1 or self.devices < 0:
            raise ValueError(
                "hardware.accumulate and .nodes must be at least 1, .devices at least 0"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """What is written while training.

    Attributes:
        every_epochs: write checkpoints/last.ckpt after every so many epochs.
        every_steps: also within epochs, every so many steps; 0 is off.
        validate_epochs: evaluate after every so many epochs, and after the last.
        log_steps: write the loss to TensorBoard and the live display every so many steps.
        statistics_batches: validation batches per epoch for the statistics of auxiliary branches.
    """

    every_epochs: int = 1
    every_steps: int = 0
    validate_epochs: int = 1
    log_steps: int = 50
    statistics_batches: int = 2

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if min(self.every_epochs, self.validate_epochs, self.log_steps) < 1:
            raise ValueError(
                "save.every_epochs, .validate_epochs and .log_steps must be at least 1"
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SwitchConfig:
    """Casting the auxiliary branches away at the end of training.

    Attributes:
        enabled: do it, where the model has auxiliary branches.
        tolerance: largest allowed relative gap of the outputs.
        force: switch above the tolerance too; the certificate says so.
        images: number of validation images that measure the gap.
    """

    enabled: bool = True
    tolerance: float = 1e-3
    force: bool = False
    images: int = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a training run goes.

    Attributes:
        task: what is trained for.
        model: which model.
        data: which images, and how they are augmented, mixed and scaled.
        epochs: passes over the training images.
        max_steps: stop and end the schedule after this many steps even if epochs remain; 0 is off.
        seed: of initial weights, order of images, augmentation, everything random.
        optim: the optimiser.
        schedule: the learning rate over the steps.
        loss: the loss on labels.
        distill: learning from a teacher.
        ema: moving average of the weights.
        clip: gradient clipping.
        regularize: drop-path ramp, BatchNorm statistics.
        hardware: devices, precision, accumulation.
        save: checkpoints and logs.
        switch: casting the auxiliary branches away at the end.
    """

    task: Literal["classification"] = "classification"
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    epochs: int = 10
    max_steps: int = 0
    seed: int = 0
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    distill: DistillConfig = dataclasses.field(default_factory=DistillConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    clip: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    regularize: RegularizeConfig = dataclasses.field(default_factory=RegularizeConfig)
    hardware: HardwareConfig = dataclasses.field(default_factory=HardwareConfig)
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    switch: SwitchConfig = dataclasses.field(default_factory=SwitchConfig)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if self.max_steps < 0:
            raise ValueError(f"max_steps must not be negative, got {self.max_steps}")
