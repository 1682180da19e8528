"""The words for devices that every verb and recipe takes: auto, cpu, cuda, cuda:1, mps."""

from __future__ import annotations

import re

import torch

WORDS = "auto, cpu, cuda, cuda:1 (the second GPU) or mps"
_KNOWN = re.compile(r"auto|cpu|mps|cuda(:\d+)?")


def check_device_word(text: str, option: str = "device") -> None:
    """Raise ValueError unless ``text`` is one of the words; whether it exists here is not asked."""
    if not _KNOWN.fullmatch(text):
        raise ValueError(f"{option} is {text!r}; it must be {WORDS}")


def read_device(text: str | torch.device, option: str = "device") -> torch.device:
    """The device that a word means on this machine.

    Args:
        text: ``auto`` (the first GPU where CUDA works, else the CPU), ``cpu``, ``cuda``,
            ``cuda:1``, ``mps``; a ``torch.device`` of any kind is given back.
        option: what the word was given for, for the message.

    Raises:
        ValueError: no such word, or no such device; the message says what there is.
    """
    if isinstance(text, torch.device):
        if text.type not in ("cuda", "mps"):
            return text
        text = str(text)
    check_device_word(text, option)
    if text == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(text)
    missing = (device.type == "cuda" and (device.index or 0) >= count_gpus()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ValueError(
            f"{option} is {text}, but PyTorch finds {describe_devices()} on this machine: choose "
            "one of these, or auto"
        )
    return device


def count_gpus() -> int:
    """Number of GPUs that CUDA can use; 0 where CUDA does not work."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def describe_devices() -> str:
    """The devices of this machine in words, such as ``"only cpu"`` or ``"cpu and cuda:0"``."""
    found = ["cpu", *(f"cuda:{index}" for index in range(count_gpus()))]
    if torch.backends.mps.is_available():
        found.append("mps")
    if len(found) > 1:
        return f"{', '.join(found[:-1])} and {found[-1]}"
    built = torch.backends.cuda.is_built()
    return "only cpu" if built else "only cpu (this PyTorch is built without CUDA)"
