"""Folders of converted Hugging Face models, which only castling opens.

``from_pretrained`` of transformers builds a model from its configuration, and that says nothing of
another attention: it would build softmax attention, load the weights that fit and mention the rest
in a warning. So a converted model's ``save_pretrained`` writes its weights into a file of another
name, :data:`WEIGHTS`, without which ``from_pretrained`` refuses the folder, and writes its
attentions into ``config.json``.
"""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import nn

from castling.attention import TokenMixer
from castling.surgery.selection import attention_layers
from castling.surgery.self_description import attention_arguments
from castling.utils.files import replacing_together, write_json

#: The weights, by the names of the model's own ``state_dict``.
WEIGHTS = "castling.safetensors"
#: The entry in ``config.json``.
ENTRY = "castling"
_OTHERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


def is_of_transformers(model: nn.Module) -> bool:
    """Whether a model is one that transformers saves and loads."""
    base = getattr(sys.modules.get("transformers"), "PreTrainedModel", None)
    return base is not None and isinstance(model, base)


def save_as_converted(model: Any) -> None:
    """Let ``model.save_pretrained`` write what ``castling.load_transformers`` reads."""
    model.save_pretrained = functools.partial(save_transformers, model)


def save_transformers(model: Any, save_directory: str | os.PathLike[str], **options: Any) -> None:
    """Write a converted model of transformers; all files appear together or not at all.

    Args:
        model: converted by :func:`castling.linearize_`.
        save_directory: a folder, made if missing.
        **options: of transformers' ``save_pretrained`` that change nothing here:
            ``safe_serialization``, ``max_shard_size``, ``is_main_process``. A ``state_dict`` is
            written in place of the model's.

    Raises:
        ValueError: an option that this cannot follow, such as ``push_to_hub``; a class that is not
            one of transformers.
        FileExistsError: the folder holds weights that transformers would open.
    """
    state = options.pop("state_dict", None) or model.state_dict()
    for name in ("safe_serialization", "max_shard_size", "save_peft_format"):
        options.pop(name, None)
    if not options.pop("is_main_process", True):
        return
    if wrong := [name for name, value in options.items() if value]:
        raise ValueError(
            f"a converted model is saved without {', '.join(wrong)}: save it into a folder, and "
            "upload that"
        )
    layers = {n: m for n, m in attention_layers(model).items() if isinstance(m, TokenMixer)}
    kind = type(model)
    if getattr(sys.modules["transformers"], kind.__name__, None) is not kind:
        raise ValueError(
            f"{kind.__name__} is no class of transformers, and could not be opened again from a "
            "folder: save model.state_dict() with safetensors, build the model anew, convert it "
            "in the same way and load the weights"
        )
    folder = Path(save_directory)
    if others := [n for n in _OTHERS if (folder / n).exists()]:
        raise FileExistsError(
            f"{folder} holds {others[0]}, which transformers would open in place of the converted "
            "model: choose another folder"
        )
    with replacing_together(folder) as temporary:
        safetensors.torch.save_file(_apart(state), temporary / WEIGHTS, {"format": "pt"})
        described = json.loads(model.config.to_json_string(use_diff=False))
        described |= {"architectures": [kind.__name__], ENTRY: attention_arguments(model, layers)}
        write_json(temporary / "config.json", described)


def _apart(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors for a safetensors file, in which no two may share memory."""
    seen: set[int] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        value = tensor.detach().contiguous()
        kept[name] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return kept
