"""What a recipe's hardware section means on this machine."""

from __future__ import annotations

import logging
from typing import Any

import torch
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn

from castling.surgery import has_idle_biases
from castling.train.recipe import HardwareConfig
from castling.utils.devices import count_gpus, describe_devices, read_device
from castling.utils.text import did_you_mean

_log = logging.getLogger(__name__)
_PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "16": "16-mixed"}


def check_hardware(hardware: HardwareConfig) -> None:
    """Refuse devices that this machine does not have, and strategies that do not exist.

    Raises:
        ValueError: the message says what there is.
    """
    device = _device(hardware)
    if device.type == "cuda" and hardware.devices > count_gpus():
        raise ValueError(
            f"hardware.devices is {hardware.devices}, but PyTorch finds {describe_devices()} on "
            f"this machine: choose at most {count_gpus()}, or 0 for all"
        )
    if hardware.devices > 1 and (device.index is not None or device.type == "mps"):
        raise ValueError(
            f"hardware.devices is {hardware.devices}, but hardware.accelerator {device} is a "
            "single device: choose cuda for several GPUs"
        )
    if hardware.precision == "bf16" and device.type == "cuda":
        with torch.cuda.device(device):
            if not torch.cuda.is_bf16_supported(including_emulation=False):
                raise ValueError(
                    "hardware.precision is bf16, which this GPU does not support: choose 16 or 32"
                )
    known = ("auto", *StrategyRegistry.available_strategies())
    if hardware.strategy not in known:
        raise ValueError(
            f"hardware.strategy: Lightning knows no {hardware.strategy!r}"
            f"{did_you_mean(hardware.strategy, known)}"
        )


def process_count(hardware: HardwareConfig) -> int:
    """Processes that train, on all machines."""
    return _count(hardware) * hardware.nodes


def several_processes(hardware: HardwareConfig) -> bool:
    """Whether more than one process trains."""
    return process_count(hardware) > 1


def is_first_process(hardware: HardwareConfig) -> bool:
    """Whether this process is the first of all that train, as known before there is a trainer."""
    if not several_processes(hardware):
        return True
    return rank_zero_only.rank == 0 and LightningEnvironment().node_rank() == 0


def trains_on_cpu(hardware: HardwareConfig) -> bool:
    """Whether the model computes on the CPU."""
    return _device(hardware).type == "cpu"


def trainer_arguments(hardware: HardwareConfig, model: nn.Module) -> dict[str, Any]:
    """The part of the arguments of Lightning's Trainer that says where and how it runs."""
    device = _device(hardware)
    precision = hardware.precision
    if device.type == "cpu" and precision != "32":
        _log.warning("hardware.precision %s is meant for a GPU; this CPU computes in 32", precision)
        precision = "32"
    devices: Any = _count(hardware)
    return {
        "accelerator": device.type,
        "devices": [device.index] if device.index is not None else devices,
        "num_nodes": hardware.nodes,
        "strategy": _strategy(hardware.strategy, model, several_processes(hardware)),
        "precision": _PRECISIONS[precision],
        "accumulate_grad_batches": hardware.accumulate,
    }


def _device(hardware: HardwareConfig) -> torch.device:
    word = "cuda" if hardware.accelerator == "gpu" else hardware.accelerator
    return read_device(word, "hardware.accelerator")


def _count(hardware: HardwareConfig) -> int:
    """Processes on this machine, one device each."""
    device = _device(hardware)
    if hardware.devices or device.type != "cuda" or device.index is not None:
        return hardware.devices or 1
    return count_gpus()


def _strategy(strategy: str, model: nn.Module, several: bool) -> str:
    """The strategy, with ``find_unused_parameters`` where some get no gradient.

    Only the auxiliary branch reads a host's score biases, so they get no gradient once it has
    closed; DistributedDataParallel would wait for them or raise.
    """
    plain = {"auto": "ddp", "ddp": "ddp", "ddp_spawn": "ddp_spawn"}
    if several and strategy in plain and has_idle_biases(model):
        return f"{plain[strategy]}_find_unused_parameters_true"
    return strategy
