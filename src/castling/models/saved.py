"""A trained model on disk: ``model.safetensors`` with its weights, ``model.json`` to rebuild it.

The two files are all that evaluation, prediction and export need. Nothing in them is executed.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor, nn

from castling.attention import attention_config, auxiliaries, config_to_dict, set_progress
from castling.models.builder import build_model
from castling.surgery import strip_
from castling.utils.files import write_bytes, write_json
from castling.utils.version import VERSION

FORMAT = "castling model 1"
WEIGHTS, CARD = "model.safetensors", "model.json"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What is needed to rebuild a model and to feed it.

    Attributes:
        name: timm name.
        kwargs: further keyword arguments of timm.create_model.
        attention: the attention put into the model, as ``config_to_dict`` writes it; None keeps
            what the named model has.
        where: names of the attention layers converted, or a plan (see ``linearize_``); None
            means all.
        classes: names in the order of the logits.
        image_size: (height, width) in pixels that the model was trained at.
        mean: per channel, subtracted from images scaled to [0, 1].
        std: per channel, divided by.
        interpolation: how images are resized.
        crop_fraction: share of the shorter side that the centre crop keeps; None is the default
            of castling.data for the size.
        eval_crop: "center", "warp" (whole image squeezed to the size) or "auto".
        switched: whether the auxiliary branches were cast away.
        progress: training progress in [0, 1] of the auxiliary branches, where there still are any.
        folded: whether ``fold_`` has rewritten the model.
        metrics: results, e.g. ``{"val_top1": 91.2}``, in percent.
        castling_version: that wrote the file.
    """

    name: str
    classes: list[str]
    image_size: tuple[int, int]
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    attention: dict[str, Any] | None = None
    where: list[str] | dict[str, Any] | None = None
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    interpolation: str = "bicubic"
    crop_fraction: float | None = None
    eval_crop: str = "auto"
    switched: bool = False
    progress: float = 1.0
    folded: bool = False
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    castling_version: str = dataclasses.field(default_factory=lambda: VERSION)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelCard:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: not a card of this format.
        """
        values = dict(values)
        if values.pop("format", None) != FORMAT:
            raise ValueError(f'"format" is not "{FORMAT}"')
        unknown = set(values) - {field.name for field in dataclasses.fields(cls)}
        if unknown:
            raise ValueError(f"unknown entries {sorted(unknown)}; written by a newer castling?")
        for name in ("image_size", "mean", "std"):
            if name in values:
                values[name] = tuple(values[name])
        try:
            return cls(**values)
        except TypeError as error:
            raise ValueError(str(error)) from error


def save_model(model: nn.Module, folder: str | os.PathLike[str], card: ModelCard) -> None:
    """Write both files, each whole or not at all.

    Args:
        model: its state dict is saved.
        folder: made if missing.
        card: must describe ``model``; its ``progress`` is read off the model's branches.
    """
    folder = Path(folder)
    for branch in auxiliaries(model).values():
        card = dataclasses.replace(card, progress=branch.progress)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # not save_file, which keeps the weights from everybody else whatever the umask is
    write_bytes(folder / WEIGHTS, safetensors.torch.save(_unshared(state)))
    write_json(folder / CARD, card.to_dict())


def open_model(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelCard]:
    """Rebuild a saved model, in evaluation mode on the CPU.

    Args:
        path: the folder, or either of its two files.

    Raises:
        FileNotFoundError: nothing there, or one of the two files is missing.
        ValueError: the files are not of a castling model, or do not fit each other.
    """
    folder = Path(path)
    if folder.name in (WEIGHTS, CARD):
        folder = folder.parent
    elif folder.is_file():
        raise ValueError(
            f"{folder} is not a saved castling model: give the folder that holds {WEIGHTS} and "
            f"{CARD}; castling.load_checkpoint reads foreign weights into a model you build"
        )
    if not folder.is_dir():
        raise FileNotFoundError(f"no such model folder: {folder}")
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no {name}; a finished castling train writes {WEIGHTS} and {CARD}"
            )
    card = _read_card(folder / CARD)
    model = build_model(card.name, card.kwargs, card.attention, card.where)
    if card.switched:
        strip_(model)
    elif auxiliaries(model):
        set_progress(model, card.progress)
    model.eval()
    if card.folded:
        from castling.surgery import fold_

        fold_(model)
    _load_strictly(model, _read_weights(folder / WEIGHTS), folder / WEIGHTS)
    return model, card


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Initialise ``model`` from a run's folder, a .safetensors file, or a PyTorch file.

    PyTorch files are read with ``weights_only=True``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the weights do not fit the model.
    """
    path = Path(path)
    if path.is_dir():
        path = path / WEIGHTS
    if not path.is_file():
        raise FileNotFoundError(f"no such weights: {path}")
    if path.suffix == ".safetensors":
        _load_strictly(model, _read_weights(path), path)
    else:
        from castling.surgery import load_checkpoint

        load_checkpoint(model, path)


def describe_attention(attention: str | dict[str, Any] | None) -> dict[str, Any] | None:
    """An attention with all options written out, as a card holds it."""
    return None if attention is None else config_to_dict(attention_config(attention))


def _read_card(path: Path) -> ModelCard:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return ModelCard.from_dict(values)
    except ValueError as error:  # JSON and Unicode errors are ValueErrors too
        raise ValueError(f"{path} does not describe a castling model: {error}") from error


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error


def _load_strictly(model: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit the model: {error}") from error


def _unshared(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies of tensors that share memory, which safetensors refuses."""
    seen: set[int] = set()
    result = {}
    for name, value in state.items():
        pointer = value.untyped_storage().data_ptr()
        result[name] = value.clone() if pointer in seen else value
        seen.add(pointer)
    return result
