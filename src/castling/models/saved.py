"""A trained model on disk: ``model.safetensors`` with its weights, ``model.json`` to rebuild it.

The two files are all that evaluation, prediction and export need; nothing in them is executed. A
``README.md`` beside them describes the model to people.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from castling.attention import auxiliaries, set_progress
from castling.models.builder import build_model
from castling.models.card import CARD, ModelCard, read_card, write_card
from castling.models.model_card import README, render_model_card
from castling.surgery import fold_, load_checkpoint, strip_
from castling.utils.files import write_bytes, write_text

WEIGHTS = "model.safetensors"
#: What the switch measured, beside a switched model.
CERTIFICATE = "certificate.json"


def save_model(
    model: nn.Module,
    folder: str | os.PathLike[str],
    card: ModelCard,
    *,
    certificate: Mapping[str, Any] | None = None,
    pipeline_tag: str = "",
    percentages: Iterable[str] = (),
) -> None:
    """Write weights, card, and the card as a page (``README.md``); each file whole or not at all.

    Args:
        model: its state dict is saved.
        folder: made if missing.
        card: must describe ``model``; its ``progress`` is read off the model's branches.
        certificate: ``SwitchReport.to_dict()`` of a switched model, for the page.
        pipeline_tag: the Hugging Face hub's name of the task, for the page.
        percentages: names of metrics in percent, for the page.
    """
    folder = Path(folder)
    for branch in auxiliaries(model).values():
        card = dataclasses.replace(card, progress=branch.progress)
    state = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write_weights(folder / WEIGHTS, state)
    write_card(folder / CARD, card)
    page = render_model_card(
        card,
        pipeline_tag=pipeline_tag,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        certificate=certificate,
        percentages=frozenset(percentages),
    )
    write_text(folder / README, page)


def open_model(path: str | os.PathLike[str]) -> tuple[nn.Module, ModelCard]:
    """Rebuild a saved model, in evaluation mode on the CPU.

    Args:
        path: the folder, or either of its two files.

    Raises:
        FileNotFoundError: nothing there, or one of the two files is missing.
        ValueError: the files are not of a castling model, do not fit each other, or hold numbers
            that are no weights (NaN, infinity, integers).
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
    card = read_card(folder / CARD)
    try:
        model = build_model(card.name, card.kwargs, card.attention, card.where, head=card.head)
    except ValueError as error:
        raise ValueError(
            f"{folder / CARD} describes a model that cannot be built: {error}"
        ) from error
    if card.switched:
        strip_(model)
    elif auxiliaries(model):
        set_progress(model, card.progress)
    model.eval()
    if card.folded:
        fold_(model)
    _require_classes(model, card, folder / CARD)
    try:
        load_checkpoint(model, folder / WEIGHTS)
    except ValueError as error:
        space = "\n" if "\n" in str(error) else " "  # a list of weights goes on below
        raise ValueError(
            f"{error}{space}(the model is the one that {folder / CARD} describes)"
        ) from error
    return model, card


def check_model_files(folder: str | os.PathLike[str]) -> None:
    """Check that both files of a saved model are there and whole; weights are not read.

    Raises:
        FileNotFoundError: one is missing; the message names it.
        ValueError: one is damaged; the message names it.
    """
    folder = Path(folder)
    for name in (WEIGHTS, CARD):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} is missing")
    read_card(folder / CARD)
    path = folder / WEIGHTS
    try:
        with safetensors.safe_open(path, framework="pt"):  # compares the header with the length
            pass
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error})") from error


def _require_classes(model: nn.Module, card: ModelCard, path: Path) -> None:
    """Raise ValueError where a model has not one output for each class of its card."""
    outputs = getattr(model, "num_classes", None)
    if isinstance(outputs, int) and outputs not in (0, len(card.classes)):
        raise ValueError(
            f'{path} does not describe its model: "classes" has {len(card.classes)} names, the '
            f"weights beside it are for {outputs} classes"
        )


def write_weights(path: str | os.PathLike[str], state: Mapping[str, Tensor]) -> None:
    """Write weights as safetensors, which wants tensors in row-major order that share no memory."""
    seen: set[int] = set()
    plain = {}
    for name, value in state.items():
        pointer = value.untyped_storage().data_ptr()
        # A model in channels-last order has weights in that order.
        own = value.detach().contiguous(memory_format=torch.contiguous_format)
        plain[name] = own.clone() if pointer in seen else own
        seen.add(pointer)
    # Not save_file: it makes the file unreadable for other users, whatever the umask.
    write_bytes(path, safetensors.torch.save(plain))
