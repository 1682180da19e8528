"""Reading files of weights without running anything that a file holds."""

from __future__ import annotations

import os
import pickle
import re
import threading
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from castling.surgery.checkpoint_types import stand_ins

# PyTorch files are zip archives; before 2020 they were pickles, as some still are.
_STARTS = (b"PK\x03\x04", b"\x80")
_DAMAGED = ("Unsupported operand", "String is too long")
#: Of our runs and saved models, and of the hub's folders, older ones last.
_IN_FOLDERS = ("model.safetensors", "pytorch_model.bin")
#: PyTorch keeps what its reader allows in one place for the whole process.
_ALLOWING = threading.Lock()


def read_content(path: str | os.PathLike[str]) -> Any:
    """What a file holds: names and tensors, or a dictionary in which these lie somewhere.

    PyTorch files are read by the restricted unpickler, which builds tensors and plain containers.
    For the types in :mod:`castling.surgery.checkpoint_types` it builds stand-ins; a file that asks
    for anything else is refused.

    Args:
        path: a .safetensors file, a PyTorch file, or a folder that holds one by its usual name.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, or one that could run code.
    """
    path = weights_file(path)
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path)
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith(_STARTS):
        raise ValueError(
            f"{path} is not a checkpoint file: neither a PyTorch file nor, by its name, safetensors"
        )
    try:
        with _ALLOWING, torch.serialization.safe_globals(stand_ins()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # arbitrary bytes can make the reader raise anything
        raise ValueError(_refusal(path, error)) from None


def weights_file(path: str | os.PathLike[str]) -> Path:
    """The file that ``path`` is or, for the folder of a run, saved or downloaded model, holds.

    Raises:
        FileNotFoundError: no such file.
    """
    path = Path(path)
    if path.is_dir():
        inside = [path / name for name in _IN_FOLDERS]
        path = next((file for file in inside if file.is_file()), inside[0])
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    return path


def _refusal(path: Path, error: Exception) -> str:
    """Why the file was not read. PyTorch's own message recommends the unsafe way."""
    text = str(error)
    if not isinstance(error, pickle.UnpicklingError) or any(sign in text for sign in _DAMAGED):
        if "TorchScript" in text:
            return f"{path} is not a PyTorch file of weights but a TorchScript program"
        reason = "" if "weights_only" in text else f": {text.splitlines()[0][:200]}" if text else ""
        return f"{path} is not a PyTorch file of weights, or is damaged{reason}"
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    return (
        f"{path} was refused, it holds more than weights and could run code when opened"
        f"{f' (it asks for {asked[1]})' if asked else ''}. Where the file was made, save the "
        "weights alone, as safetensors or as torch.save(model.state_dict(), path)"
    )
