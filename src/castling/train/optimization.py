"""Optimiser, learning-rate schedule and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import timm.optim
import torch
from timm.utils.clip_grad import dispatch_clip_grad
from torch import nn

from castling.train.optim_config import ClipConfig, OptimConfig, ScheduleConfig
from castling.utils.text import did_you_mean

#: Parameters of more than one dimension that are not weights: QT-ViT's learned scalar and position
#: table (which its reference decays by accident), position embeddings and class tokens of ViTs.
_NEVER_DECAYED = (
    "*ones_scale*",
    "*positional_encoding*",
    "*pos_embed*",
    "*cls_token*",
    "*dist_token*",
    "*attention_bias*",
    "*rel_pos*",
)


def check_optimizer(config: OptimConfig) -> None:
    """Raise ValueError unless timm knows the optimiser."""
    known = timm.optim.list_optimizers()
    if config.name not in known:
        raise ValueError(
            f"optim.name: unknown optimiser {config.name!r}, timm.optim.list_optimizers() lists "
            f"them{did_you_mean(config.name, known)}"
        )


def build_optimizer(
    model: nn.Module,
    config: OptimConfig,
    images_per_step: int,
    task_parameters: Sequence[nn.Parameter] = (),
) -> torch.optim.Optimizer:
    """The optimiser of ``config``; every group carries its peak rate as ``peak_lr``.

    Args:
        model: whose parameters are optimised.
        config: says how.
        images_per_step: over all processes and accumulated batches, for ``lr_batch``.
        task_parameters: of the task, such as a projection onto a teacher's features.

    Raises:
        ValueError: timm does not know the optimiser, or a pattern of ``lr_scale`` matches nothing.
    """
    check_optimizer(config)
    lr = config.lr * images_per_step / config.lr_batch if config.lr_batch else config.lr
    extra: dict[str, object] = {}
    if config.betas is not None:
        extra["betas"] = tuple(config.betas)
    never = set(_NEVER_DECAYED) | set(_spared(model))
    # Groups are made here because create_optimizer_v2 takes no further patterns.
    if config.layer_decay < 1:
        groups = timm.optim.param_groups_layer_decay(
            model,
            weight_decay=config.weight_decay,
            no_weight_decay_list=never,
            layer_decay=config.layer_decay,
        )
    else:
        groups = timm.optim.param_groups_weight_decay(
            model, weight_decay=config.weight_decay, no_weight_decay_list=never
        )
    if config.lr_scale:
        groups = _scaled(groups, model, config.lr_scale)
    if task_parameters:
        groups = [*groups, {"params": list(task_parameters), "weight_decay": config.weight_decay}]
    optimizer = timm.optim.create_optimizer_v2(
        groups, config.name, lr=lr, weight_decay=0.0, momentum=0.9, **extra
    )
    for group in optimizer.param_groups:
        group["peak_lr"] = lr
        group.setdefault("lr_scale", 1.0)
    return optimizer


def _scaled(
    groups: Sequence[Mapping[str, Any]], model: nn.Module, scales: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The groups, divided where the parameters of one have different factors."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for pattern in scales:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            raise ValueError(
                f"optim.lr_scale: no parameter of the model matches {pattern!r}; the first are "
                f"{', '.join(list(names.values())[:3])}"
            )
    divided = []
    for group in groups:
        by_factor: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            matching = [f for p, f in scales.items() if fnmatchcase(names[id(parameter)], p)]
            by_factor.setdefault(matching[-1] if matching else 1.0, []).append(parameter)
        for factor, parameters in by_factor.items():
            scale = group.get("lr_scale", 1.0) * factor
            divided.append({**group, "params": parameters, "lr_scale": scale})
    return divided


def _spared(model: nn.Module) -> Iterator[str]:
    """What ``no_weight_decay()`` names, of the model and of those inside it, such as a backbone."""
    for prefix, module in model.named_modules():
        names: Callable[[], Iterable[str]] | None = getattr(module, "no_weight_decay", None)
        for name in names() if names is not None else ():
            yield f"{prefix}.{name}" if prefix else name


def learning_rate(
    config: ScheduleConfig,
    peak: float,
    step: int,
    total_steps: int,
    warmup_steps: int,
    steps_per_epoch: int = 1,
) -> float:
    """Learning rate of step ``step`` (the first is 0) of ``total_steps``.

    Warm-up rises linearly from warmup_lr at step 0 to the peak at ``warmup_steps``; cosine and
    poly then fall to min_lr at ``total_steps``, or after ``cosine_epochs``.
    """
    if step < warmup_steps:
        return config.warmup_lr + (peak - config.warmup_lr) * step / warmup_steps
    if config.kind == "constant":
        return peak
    if config.kind == "steps":
        drops = sum(step >= epoch * steps_per_epoch for epoch in config.drop_epochs)
        return peak * config.drop_factor**drops
    if config.cosine_epochs is not None:
        total_steps = max(total_steps, config.cosine_epochs * steps_per_epoch)
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    floor = min(config.min_lr, peak)
    if config.kind == "poly":
        return floor + (peak - floor) * (1 - progress) ** config.power
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(
    optimizer: torch.optim.Optimizer,
    config: ScheduleConfig,
    step: int,
    total_steps: int,
    warmup_steps: int,
    steps_per_epoch: int,
) -> None:
    """Write the learning rate of ``step`` into every group."""
    for group in optimizer.param_groups:
        rate = learning_rate(
            config, group["peak_lr"], step, total_steps, warmup_steps, steps_per_epoch
        )
        group["lr"] = rate * group["lr_scale"]


def clip_gradients(parameters: list[nn.Parameter], config: ClipConfig) -> None:
    """Clip in place."""
    if config.mode == "none":
        return
    mode = "agc" if config.mode == "adaptive" else config.mode
    dispatch_clip_grad(parameters, config.value, mode=mode)
