"""Weights to start training from: those of the softmax host, of a converted model, or of a run.

What a conversion adds to a host's attention starts afresh where the file lacks it, which is the
same as filling the host before converting it. The classifier starts afresh where the classes are
others.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from castling.attention import attention_config
from castling.attention.base import AttentionCore
from castling.models.builder import build_model
from castling.models.card import CARD, ModelCard, read_card
from castling.models.dense_builder import DenseArguments
from castling.models.dense_weights import prepare_dense
from castling.models.pretrained_encoder import prepare_encoder
from castling.models.skeleton import without_memory
from castling.surgery import LoadReport
from castling.surgery.checkpoint import LoadOptions, prepare
from castling.surgery.checkpoint_files import weights_file
from castling.surgery.checkpoint_values import fill

Channels = tuple[float, float, float]


def start_from(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    key: str = "",
    classes: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> LoadReport:
    """Fill ``model``, in place, as far as the file fits, and say what was not taken.

    Args:
        model: what will be trained.
        path: a file of weights, or the folder of a run or saved model.
        key: of the weights in the file (see ``load_checkpoint``).
        classes: names in the order of the model's outputs; a file that is known to have others
            gives no classifier. None takes whatever classifier fits.
        mean: per channel, that the model's images will be normalised with; None says nothing
            about other ones in the report.
        std: as ``mean``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not fit, or holds no plain finite weights; the model is unchanged.
    """
    card = card_beside(path)
    state, report = _prepared(model, path, card, key, classes)
    fill(model, state, path)
    notes = [*report.notes, *_said(model, card, classes, mean, std)]
    return dataclasses.replace(report, notes=tuple(notes))


def check_start(
    path: str | os.PathLike[str],
    name: str,
    kwargs: dict[str, Any],
    attention: str | dict[str, Any] | None = None,
    where: Any = None,
    *,
    head: Mapping[str, Any] | None = None,
    image_size: tuple[int, int],
    key: str = "",
) -> None:
    """Refuse weights that do not fit a model, without its memory; arguments as ``build_model``.

    Raises:
        FileNotFoundError: as :func:`start_from`.
        ValueError: as :func:`start_from`.
    """
    weights_file(path)
    model = skeleton(name, kwargs, attention, where, head=head, image_size=image_size)
    _prepared(model, path, card_beside(path), key, None)


def _prepared(
    model: nn.Module,
    path: str | os.PathLike[str],
    card: ModelCard | None,
    key: str,
    classes: Sequence[str] | None,
) -> tuple[dict[str, Tensor], LoadReport]:
    """What a file has for the model, which is not changed, and the report."""
    options = _options(card, key, classes)
    arguments: DenseArguments | None = getattr(model, "dense_arguments", None)
    try:
        if arguments is not None:
            head = None if card is None else card.head or {}
            return prepare_dense(model, arguments, path, head, options)
        loads = prepare_encoder if card is not None and card.head else prepare
        return loads(model, path, options)
    except ValueError as error:
        if card is None:
            raise
        raise ValueError(f"the weights in {path} are of {card.name}: {error}") from error


def skeleton(
    name: str,
    kwargs: dict[str, Any],
    attention: str | dict[str, Any] | None = None,
    where: Any = None,
    *,
    head: Mapping[str, Any] | None = None,
    image_size: tuple[int, int],
) -> nn.Module:
    """The model of :func:`build_model` without its memory, where it can be built so."""

    def build() -> nn.Module:
        return build_model(name, kwargs, attention, where, head=head, image_size=image_size)

    return without_memory(build)


def normalisation_of(
    name: str, checkpoint: str | os.PathLike[str] = ""
) -> tuple[Channels, Channels] | None:
    """Mean and std, per channel of pixels in [0, 1], of the images that weights were trained on.

    Args:
        name: in timm's registry.
        checkpoint: a file of weights, or the folder of a run or saved model; empty for timm's own.

    Returns:
        Those of the saved model that the weights belong to, or of timm's description of the
        architecture; None where neither says any.

    Raises:
        ValueError: the card beside the weights is damaged.
    """
    card = card_beside(checkpoint) if checkpoint else None
    described = card or get_pretrained_cfg(name, allow_unregistered=True)
    if described is None or not described.mean or not described.std:
        return None
    (r, g, b), (s, t, u) = described.mean, described.std
    return (r, g, b), (s, t, u)


def card_beside(path: str | os.PathLike[str]) -> ModelCard | None:
    """The card of the saved model that weights belong to; None for other files.

    Raises:
        ValueError: the card is damaged; the message names it.
    """
    file = Path(path) if Path(path).is_dir() else Path(path).parent
    if file.name == "checkpoints":  # of a run
        file = file.parent
    return read_card(file / CARD) if (file / CARD).is_file() else None


def _options(card: ModelCard | None, key: str, classes: Sequence[str] | None) -> LoadOptions:
    return LoadOptions(
        key=key,
        allow_head_mismatch=True,
        allow_new_attention=True,
        image_size=None if card is None else _table_size(card),
        keep_head=card is not None and classes is not None and card.classes != list(classes),
    )


def _table_size(card: ModelCard) -> tuple[int, int]:
    """(height, width) in pixels that the position tables of a saved model were made for."""
    size = card.kwargs.get("img_size") or card.image_size
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _said(
    model: nn.Module,
    card: ModelCard | None,
    classes: Sequence[str] | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
) -> list[str]:
    """What else to know about weights that fit."""
    notes = []
    arguments: DenseArguments | None = getattr(model, "dense_arguments", None)
    described: Any = getattr(model, "pretrained_cfg", None) or {}
    if arguments is not None:
        cfg = get_pretrained_cfg(arguments.backbone, allow_unregistered=True)
        described = {} if cfg is None else cfg.to_dict()
    theirs: list[Any] = [described.get("mean"), described.get("std")]
    whose = "timm's description of this model"
    if card is not None:
        height, width = card.image_size
        attention = f" and {card.attention['name']} attention" if card.attention else ""
        for_classes = f"for {len(card.classes)} classes and " if card.classes else "for "
        notes.append(f"they are of {card.name}{attention}, {for_classes}images of {height}×{width}")
        notes += _other_attention(model, card)
        # A backbone has no classes.
        whole = bool(card.classes) and (arguments is None) == (not card.head)
        if classes is not None and card.classes != list(classes) and whole:
            notes.append("its classes are not those of the data: the classifier starts afresh")
        theirs, whose = [card.mean, card.std], "the model of these weights"
    ours: list[Any] = [mean, std]
    if None in (*theirs, *ours):
        return notes
    if [tuple(x) for x in theirs] == [tuple(x) for x in ours]:
        notes.append(
            f"images are normalised with mean {_numbers(mean)} and std {_numbers(std)}, as {whose} "
            "says"
        )
    else:
        notes.append(
            f"{whose} has mean {_numbers(theirs[0])} and std {_numbers(theirs[1])}; this run "
            f"normalises with {_numbers(ours[0])} and {_numbers(ours[1])} (data.transform.mean, "
            "data.transform.std)"
        )
    return notes


def _other_attention(model: nn.Module, card: ModelCard) -> list[str]:
    """In which options the attention differs from that of the weights, branches left out."""
    if not card.attention:
        return []
    theirs = attention_config(card.attention)
    for module in model.modules():
        own = module.config if isinstance(module, AttentionCore) else None
        if own is None or type(own) is not type(theirs):
            continue
        differ = [
            f"{field.name} {getattr(theirs, field.name)!r} (here {getattr(own, field.name)!r})"
            for field in dataclasses.fields(own)
            if field.name != "auxiliary" and getattr(theirs, field.name) != getattr(own, field.name)
        ]
        if differ:
            return [
                f"they were trained with {', '.join(differ)}: set model.attention to the same "
                "options"
            ]
    return []


def _numbers(values: Any) -> str:
    return " ".join(f"{value:.3g}" for value in values)
