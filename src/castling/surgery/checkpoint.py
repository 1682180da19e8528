"""``load_checkpoint``: our files and the official ones of all three papers into a model.

Nothing in a file is executed, and a model is filled whole or not at all.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import torch
from torch import Tensor, nn

from castling.surgery.checkpoint_files import read_weights
from castling.surgery.checkpoint_names import may_be_missing, translate


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What :func:`load_checkpoint` did.

    Attributes:
        path: the file.
        source: the key in the file under which the weights stood, "" at the top.
        loaded: number of entries filled.
        missing: entries of the model that the file lacks; they kept their values.
        unexpected: entries of the file that the model lacks.
        kept_head: entries of the classifier that kept their values, the file's being of other size.
        notes: which names were translated, and which weights are not finite.
    """

    path: str
    source: str
    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    kept_head: tuple[str, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, ready for JSON."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in dataclasses.asdict(self).items()
        }


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    strict: bool = True,
    *,
    prefer_ema: bool = False,
    allow_head_mismatch: bool = False,
) -> LoadReport:
    """Fill ``model`` with the weights of a file, in place.

    Understood: safetensors and PyTorch files; our run folders; CAS-ViT's releases, with or without
    ``dist_head`` (where the model has none, both heads are averaged: same logits) and dense norms;
    QT-ViT's and MIT EfficientViT's releases into ``qt_vit_*`` and timm's ``efficientvit_*``; the
    Castling-ViT reference block (``qkv``, ``proj``, ``dconv``). Prefixes of data parallelism,
    compilation, trainers and detectors are stripped. Position tables of QT-ViT are resized.

    Args:
        model: takes the weights' names.
        path: the file, or a run's folder.
        strict: False tolerates missing and unexpected entries, never shapes that do not fit.
        prefer_ema: take the averaged weights (``model_ema``) where the file has both.
        allow_head_mismatch: keep the model's own classifier where the file's has another size.

    Returns:
        what was loaded and what was not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not one of weights, could run code, or does not fit the model, or
            the model is on the meta device; the model is unchanged then.
    """
    raw, source = read_weights(path, prefer_ema=prefer_ema)
    own: dict[str, Tensor] = model.state_dict()
    if any(tensor.is_meta for tensor in own.values()):
        raise ValueError(
            "the model is on the meta device and has no memory to fill: create it on a real device"
        )
    classifier = classifier_names(model)
    state, notes = translate(raw, own, bool(classifier))
    unusable = [
        f"{name} ({reason})"
        for name, tensor in state.items()
        if name in own and (reason := _why_unusable(tensor, own[name]))
    ]
    if unusable:
        raise ValueError(
            f"{path} holds entries that are no plain weights, the model is unchanged: "
            f"{_some(unusable)}"
        )
    shapes = [
        name
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape and not _resizable(name, tensor, own)
    ]
    kept = [name for name in shapes if name in classifier] if allow_head_mismatch else []
    shapes = [name for name in shapes if name not in kept]
    missing = [name for name in own if name not in state and not may_be_missing(name)]
    unexpected = [name for name in state if name not in own]
    if shapes or (strict and (missing or unexpected)):
        raise ValueError(_message(path, state, own, missing, unexpected, shapes, classifier))
    state = {name: tensor for name, tensor in state.items() if name in own and name not in kept}
    if not state:
        raise ValueError(f"{path} holds nothing that this {type(model).__name__} has")
    broken = [n for n, t in state.items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        notes.append(f"not finite, with NaN or infinity ({len(broken)}): {_some(broken)}")
    with torch.no_grad():
        model.load_state_dict(state, strict=False)
    return LoadReport(
        path=str(path),
        source=source,
        loaded=len(state),
        missing=tuple(name for name in own if name not in state and name not in kept),
        unexpected=tuple(unexpected),
        kept_head=tuple(kept),
        notes=tuple(notes),
    )


def classifier_names(model: nn.Module) -> set[str]:
    """Names of the state of the model's last linear layers, as timm's ``get_classifier`` tells."""
    if not hasattr(model, "get_classifier"):
        return set()
    found: Any = model.get_classifier()  # type: ignore[operator]
    layers = found if isinstance(found, tuple | list) else (found,)
    return {
        f"{name}.{entry}"
        for name, module in model.named_modules()
        if any(module is layer for layer in layers)
        for entry in module.state_dict()
    }


def _why_unusable(tensor: Tensor, own: Tensor) -> str | None:
    """Why an entry of the file cannot be copied into ``own``, or None."""
    if tensor.is_meta:
        return "without data"
    if tensor.layout is not torch.strided:
        return "sparse"
    if tensor.is_quantized:
        return "quantised"
    if tensor.is_complex() and not own.is_complex():
        return "complex"
    whole = not (tensor.is_floating_point() or tensor.is_complex())
    # 8-bit codes, float8 included, mean nothing without their scales.
    if own.is_floating_point() and (whole or tensor.itemsize < 2):
        return f"{str(tensor.dtype).removeprefix('torch.')} for floating point"
    return None


def _resizable(name: str, tensor: Tensor, own: dict[str, Tensor]) -> bool:
    """Whether the entry is a position table of QT-ViT, which its module resizes on loading."""
    return (
        name.endswith("positional_encoding")
        and tensor.dim() == own[name].dim() == 4
        and tensor.shape[:2] == own[name].shape[:2]
    )


def _message(
    path: str | os.PathLike[str],
    state: dict[str, Tensor],
    own: dict[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    classifier: set[str],
) -> str:
    lines = [f"{path} does not fit the model, which is unchanged"]
    if shapes:
        pairs = [f"{n} {tuple(state[n].shape)} for {tuple(own[n].shape)}" for n in shapes]
        lines.append(f"shapes ({len(shapes)}): {_some(pairs)}")
    if missing:
        lines.append(f"missing in the file ({len(missing)}): {_some(missing)}")
    if unexpected:
        lines.append(f"unknown to the model ({len(unexpected)}): {_some(unexpected)}")
    lines.append(_hint(state, missing, unexpected, shapes, classifier))
    return "\n".join(lines)


def _some(names: list[str]) -> str:
    rest = f", … {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + rest


def _hint(
    state: dict[str, Tensor],
    missing: list[str],
    unexpected: list[str],
    shapes: list[str],
    classifier: set[str],
) -> str:
    """The likely reason, and what to do."""
    if shapes and set(shapes) <= classifier:
        classes = state[shapes[0]].shape[0]
        return (
            f"The file classifies {classes} classes: create the model with num_classes={classes}, "
            "or pass allow_head_mismatch=True to keep the model's own classifier"
        )
    if any(".auxiliary." in name or "attention_biases" in name for name in missing + unexpected):
        return "One of them was switched, the other was not: castling.switch_ the same way first"
    norms = [name for name in missing if name.endswith("running_var")]
    if norms and len(norms) * 2 <= len(missing):
        return "The file may come from a folded model: call castling.fold_(model.eval()) first"
    if shapes:
        return "The file comes from a model of another size or with other options"
    if len(missing) > len(unexpected) == 0:
        return "The file holds a part of this model: strict=False loads that part"
    return "The file comes from another kind of model or from one with other options"
