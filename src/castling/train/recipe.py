"""A recipe: everything that decides how a training run goes, as nested frozen dataclasses."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from castling.data import DataConfig
from castling.tasks import DEFAULT_TASK, TaskConfig
from castling.utils.checks import LeftOpenUnitInterval, RightOpenUnitInterval, check_fields
from castling.utils.devices import check_device_word


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Which model.

    Attributes:
        name: a name of timm's registry, ours included: castling models lists them; or
            HEAD/BACKBONE for a dense model, such as picodet_s/esnet_s.
        kwargs: further keyword arguments of timm.create_model, such as img_size or patch_size; of
            the backbone where there is a head. The image size of the data is passed as img_size to
            models that take it.
        head: options of a dense model's head; those left out are its own.
        attention: name of an attention, or a dictionary of name and options, put into the model;
            empty keeps what the model has.
        where: names of the attention layers to convert, "*" allowed; a dictionary from such names
            to the attention of each, null leaving a layer as it is; or the file that castling plan
            wrote (plan.json); empty means all. Layers of a dense model are named as in it:
            backbone.body. and so on.
        pretrained: start from timm's published weights (needs the network), unless there is a
            checkpoint; in a dense model they are the backbone's.
        checkpoint: start from these weights: a run's folder, .safetensors or .pth. Softmax weights
            of the model go into its linear version, another number of classes starts the
            classifier afresh, positions are resized to the image size. A classifier's weights go
            into the backbone of a dense model.
        checkpoint_key: which weights in that file, such as model_ema; empty takes the trained ones.
        drop_path: final rate of stochastic depth; empty keeps the model's own.
    """

    name: str = "castling_deit_pico"
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    head: dict[str, Any] = dataclasses.field(default_factory=dict)
    attention: str | dict[str, Any] | None = None
    where: list[str] | dict[str, Any] | str | None = None
    pretrained: bool = False
    checkpoint: str = ""
    checkpoint_key: str = ""
    drop_path: RightOpenUnitInterval | None = None

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "model")
        if self.checkpoint:  # on the command line it takes the place of a recipe's pretrained
            object.__setattr__(self, "pretrained", False)
        if self.checkpoint_key and not self.checkpoint:
            raise ValueError(
                "model.checkpoint_key names weights in model.checkpoint, which is empty"
            )


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


@dataclasses.dataclass(frozen=True, kw_only=True)
class HardwareConfig:
    """Where and how it runs; may be changed when a run is resumed.

    Attributes:
        accelerator: auto (a GPU where CUDA works, else the CPU), cpu, cuda, cuda:1 (the second
            GPU), mps; gpu means cuda.
        devices: number of processes, one device each; 0 means all GPUs, or one process.
        nodes: number of machines.
        strategy: as Lightning names it: "auto", "ddp", "ddp_spawn"; a whole model in each process.
        precision: "32", "bf16" or "16" mixed on a GPU; a CPU always computes in 32, because it is
            slower in the others.
        accumulate: batches whose gradients are added up to one step.
        workers: background processes that load images; empty keeps data.loader.workers.
        compile: pass the model through torch.compile.
        channels_last: keep images and convolutions in channels-last memory layout.
    """

    accelerator: str = "auto"
    devices: NonNegativeInt = 0
    nodes: PositiveInt = 1
    strategy: str = "auto"
    precision: Literal["32", "bf16", "16"] = "32"
    accumulate: PositiveInt = 1
    workers: NonNegativeInt | None = None
    compile: bool = False
    channels_last: bool = False

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "hardware")
        if self.accelerator != "gpu":  # its earlier word for cuda
            check_device_word(self.accelerator, "hardware.accelerator")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """What is written while training.

    Attributes:
        every_epochs: write checkpoints/last.ckpt after every so many epochs.
        every_steps: also within epochs, every so many steps; 0 is off.
        validate_epochs: evaluate after every so many epochs, and after the last.
        log_steps: write the loss to the loggers and the live display every so many steps.
        best: keep the weights of the best evaluation, by the task's headline metric on the
            validation images. Counted are evaluations at which the switch is possible, that is
            with the auxiliary masks empty; of equals the later one wins.
        use: which weights are the run's model: those of the "last" step, or the "best". The others
            are saved in a sub-folder of that name where they differ.
        loggers: where curves go besides metrics.csv: names among tensorboard, csv, wandb and
            mlflow, or dictionaries of a name and options of Lightning's logger of that name, such
            as {name: wandb, project: photos}.
    """

    every_epochs: PositiveInt = 1
    every_steps: NonNegativeInt = 0
    validate_epochs: PositiveInt = 1
    log_steps: PositiveInt = 50
    best: bool = True
    use: Literal["last", "best"] = "last"
    loggers: tuple[str | dict[str, Any], ...] = ("tensorboard",)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "save")
        if self.use == "best" and not self.best:
            raise ValueError("save.use is best, which needs save.best: true")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EarlyStoppingConfig:
    """Ending training once validation gets no better.

    Evaluations count once the switch is possible, that is with the auxiliary masks empty: a model
    stopped before could not be switched. So a run with a ramp stops after its end at the earliest.

    Attributes:
        patience: stop after so many evaluations in a row without a better one; 0 is off.
        min_delta: by how much the task's headline metric must improve to count as better, in its
            own unit: percentage points for top1.
    """

    patience: NonNegativeInt = 0
    min_delta: NonNegativeFloat = 0.0

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "early_stopping")


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
    tolerance: NonNegativeFloat = 1e-3
    force: bool = False
    images: PositiveInt = 256

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self, "switch")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides how a training run goes.

    Attributes:
        task: what is trained for, its losses and its options.
        model: which model.
        data: which images, how they are split, transformed and loaded.
        epochs: passes over the training images.
        max_steps: stop and end the schedule after this many steps even if epochs remain; 0 is off.
        seed: of initial weights, order of images, augmentation, everything random.
        optim: the optimiser.
        schedule: the learning rate over the steps.
        ema: moving average of the weights.
        clip: gradient clipping.
        regularize: drop-path ramp, BatchNorm statistics.
        hardware: devices, precision, accumulation.
        save: checkpoints and logs.
        early_stopping: ending training once validation gets no better.
        switch: casting the auxiliary branches away at the end.
    """

    task: TaskConfig = dataclasses.field(default_factory=DEFAULT_TASK)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    epochs: PositiveInt = 10
    max_steps: NonNegativeInt = 0
    seed: int = 0
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    ema: EmaConfig = dataclasses.field(default_factory=EmaConfig)
    clip: ClipConfig = dataclasses.field(default_factory=ClipConfig)
    regularize: RegularizeConfig = dataclasses.field(default_factory=RegularizeConfig)
    hardware: HardwareConfig = dataclasses.field(default_factory=HardwareConfig)
    save: SaveConfig = dataclasses.field(default_factory=SaveConfig)
    early_stopping: EarlyStoppingConfig = dataclasses.field(default_factory=EarlyStoppingConfig)
    switch: SwitchConfig = dataclasses.field(default_factory=SwitchConfig)

    def __post_init__(self) -> None:
        """Raise ValueError on values without a meaning."""
        check_fields(self)
        if not -(2**63) <= self.seed < 2**64:  # what PyTorch takes
            raise ValueError(f"seed is {self.seed}; it must lie between -2^63 and 2^64 - 1")


#: The sections of a recipe that have options of their own whatever the task.
SECTIONS: dict[str, type] = {
    "model": ModelConfig,
    "optim": OptimConfig,
    "schedule": ScheduleConfig,
    "ema": EmaConfig,
    "clip": ClipConfig,
    "regularize": RegularizeConfig,
    "hardware": HardwareConfig,
    "save": SaveConfig,
    "early_stopping": EarlyStoppingConfig,
    "switch": SwitchConfig,
}
#: Plain options beside the sections.
SCALARS: dict[str, Any] = {"epochs": PositiveInt, "max_steps": NonNegativeInt, "seed": int}
