"""Opening the folders of converted Hugging Face models, see :mod:`.transformers_save`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

from castling.attention import set_progress
from castling.surgery.linearize import linearize_
from castling.surgery.switch import strip_
from castling.surgery.transformers_save import ENTRY, WEIGHTS


def load_transformers(
    folder: str | os.PathLike[str], dtype: torch.dtype | None = None
) -> nn.Module:
    """Open a converted model of transformers that its ``save_pretrained`` wrote.

    Args:
        folder: with ``config.json`` and ``castling.safetensors``.
        dtype: of the weights; None keeps that of the file.

    Returns:
        The converted model, in eval mode, of the class that was saved.

    Raises:
        ValueError: the folder holds no converted model, or weights that do not fit it.
        ImportError: transformers is not installed.
    """
    folder = Path(folder)
    weights = folder / WEIGHTS
    if not weights.is_file():
        raise ValueError(
            f"{folder} holds no {WEIGHTS}: it was not written by save_pretrained of a model that "
            "castling.linearize_ converted. Open other folders with transformers"
        )
    import transformers

    values = json.loads((folder / "config.json").read_text())
    described = values.pop(ENTRY, None)
    kind = getattr(transformers, (values.get("architectures") or [""])[0], None)
    if not isinstance(described, Mapping) or kind is None:
        raise ValueError(f"{folder}/config.json does not say which model and attention it holds")
    config = kind.config_class.from_dict(values)
    model: nn.Module = kind._from_config(config)
    linearize_(model, described["attention"], described["where"])
    set_progress(model, described["progress"])
    if described["switched"]:
        strip_(model)
    state = safetensors.torch.load_file(weights)
    pooled = any(name.startswith("pooler.") for name in state)
    if not pooled and getattr(model, "pooler", None) is not None:
        model.pooler = None  # type: ignore[assignment]  # a body without: add_pooling_layer=False
    if dtype is not None:
        state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in state.items()}
    # Entry by entry, each in its own precision; what the file does not hold keeps the model's.
    result = model.load_state_dict(state, strict=False, assign=True)
    model.tie_weights()  # type: ignore[operator]
    missing = result.missing_keys
    if missing or result.unexpected_keys:
        wrong = [*(f"{n} is missing" for n in missing), *result.unexpected_keys]
        raise ValueError(f"{weights} does not fit {kind.__name__}: {', '.join(wrong[:5])}")
    return model.eval()
