"""Reading weights from files without running anything that a file holds."""

from __future__ import annotations

import argparse
import os
import pickle
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

State = dict[str, Tensor]

_PLAIN = ("model", "state_dict", "model_state_dict")
_AVERAGED = ("model_ema", "ema", "state_dict_ema")
# PyTorch files are zip archives; before 2020 they were pickles, as some still are.
_STARTS = (b"PK\x03\x04", b"\x80")
_DAMAGED = ("Unsupported operand", "String is too long")
# QT-ViT's averages lie one dictionary deeper; the limit stops a dict that contains itself.
_DEEPEST = 4


def read_weights(path: str | os.PathLike[str], *, prefer_ema: bool = False) -> tuple[State, str]:
    """Names and tensors of a file.

    PyTorch files are read by the restricted unpickler, which builds tensors and plain containers; a
    file that asks for anything else is refused. Beyond that ``argparse.Namespace`` is allowed: the
    CAS-ViT authors' files hold their command line; nothing in building one calls code.

    Args:
        path: a .safetensors file, a PyTorch file, or a run's folder (its model.safetensors).
        prefer_ema: take the exponential moving average of the weights where the file has one.

    Returns:
        the weights, and the key in the file under which they stood ("" at the top).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a file of weights, or one that could run code.
    """
    path = Path(path)
    if path.is_dir():
        path = path / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no such checkpoint: {path}")
    if path.suffix == ".safetensors":
        try:
            return safetensors.torch.load_file(path), ""
        except safetensors.SafetensorError as error:
            raise ValueError(f"{path} is not a safetensors file: {error}") from error
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith(_STARTS):
        raise ValueError(
            f"{path} is not a checkpoint file: neither a PyTorch file nor, by its name, safetensors"
        )
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError:
        raise
    except Exception as error:  # arbitrary bytes can make the reader raise anything
        raise ValueError(_refusal(path, error)) from None
    return _find_weights(content, path, prefer_ema)


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


def _find_weights(content: Any, path: Path, prefer_ema: bool) -> tuple[State, str]:
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not names and tensors")
    order = _AVERAGED + _PLAIN if prefer_ema else _PLAIN + _AVERAGED
    for key in order:
        state = _as_state(content.get(key))
        if state is not None:
            return state, key
    state = _as_state(content)
    if state is None:
        raise ValueError(
            f"{path} holds no weights under {', '.join(_PLAIN + _AVERAGED)}; its entries are "
            f"{', '.join(map(str, list(content)[:12]))}"
        )
    return state, ""


def _as_state(value: Any, depth: int = _DEEPEST) -> State | None:
    """``value`` as names and tensors if it is that; QT-ViT's averages lie one level below."""
    if not isinstance(value, dict) or not value or not depth:
        return None
    if len(value) == 1 and not isinstance(next(iter(value)), str):
        return _as_state(next(iter(value.values())), depth - 1)
    if all(isinstance(n, str) and isinstance(t, Tensor) for n, t in value.items()):
        return dict(value)
    return None
