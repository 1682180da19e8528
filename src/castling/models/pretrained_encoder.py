"""Weights of a pre-trained backbone for the whole model that it is the features of."""

from __future__ import annotations

import dataclasses
import os
import re

from torch import Tensor, nn

from castling.models.backbone import PREFIX
from castling.surgery import LoadReport
from castling.surgery.checkpoint import LoadOptions, prepare_weights
from castling.surgery.checkpoint_files import read_content, weights_file
from castling.surgery.checkpoint_layouts import Weights, find_weights
from castling.surgery.checkpoint_match import tensors_of

State = dict[str, Tensor]
#: The task whose models are of no use but for their backbones.
PRETRAINING = "pretraining"


def names_inside(name: str) -> tuple[str, ...]:
    """What an entry of a whole model may be called in a backbone, behind its prefix.

    timm wraps a model for its features, or joins the first two names, or has a class for it.
    """
    return f"model.{name}", name.replace(".", "_", 1), name


def prepare_encoder(
    model: nn.Module, path: str | os.PathLike[str], options: LoadOptions
) -> tuple[State, LoadReport]:
    """:func:`encoder_entries`, and a note of their share of the model."""
    taken, report = encoder_entries(model, path, options)
    note = share_of(len(taken), len(tensors_of(model)), "model")
    return taken, dataclasses.replace(report, notes=(*report.notes, note))


def share_of(taken: int, count: int, what: str) -> str:
    """How many of the ``count`` entries of ``what`` are pre-trained."""
    return f"{taken} of {count} entries of the {what} ({taken / count:.0%}) are pre-trained"


def encoder_entries(
    model: nn.Module, path: str | os.PathLike[str], options: LoadOptions
) -> tuple[State, LoadReport]:
    """The entries of the backbone in a dense model's file, for a whole model of timm's registry.

    What only one of the two has as a whole, such as a last norm or a classifier, is left out, and
    the report says so; layers that differ are refused.

    Args:
        model: not changed; may be on the meta device.
        path: a file of weights, or the folder of a run or saved model.
        options: as of :func:`castling.surgery.checkpoint.prepare`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not fit, or holds no backbone.
    """
    found = find_weights(read_content(path), weights_file(path), options.key)
    dense = next((each for each in found if any(PREFIX in name for name in each.state)), None)
    if dense is None:
        raise ValueError(f"{path} holds no backbone (entries called {PREFIX}…)")
    inside = {
        name.partition(PREFIX)[2]: tensor for name, tensor in dense.state.items() if PREFIX in name
    }
    own = tensors_of(model)
    theirs = {
        name: each
        for name in own
        if (each := next((n for n in names_inside(name) if n in inside), None)) is not None
    }
    parts = {_part(name) for name in own}
    state = {name: inside[each] for name, each in theirs.items()}
    others = {
        name.removeprefix("model."): tensor
        for name, tensor in inside.items()
        if name not in theirs.values()
    }
    state |= {name: tensor for name, tensor in others.items() if _part(name) in parts}
    filled = {_part(name) for name in state}
    absent = {name.rpartition(".")[0] for name in own if _part(name) not in filled}
    options = dataclasses.replace(
        options,
        allow_head_mismatch=True,
        keep_head=True,
        classifiers=(*options.classifiers, *filter(None, sorted(absent))),
    )
    taken, report = prepare_weights(model, [Weights(dense.key, state)], path, options)
    unused = tuple(name for name in others if _part(name) not in parts)
    left = len(dense.state) - len(inside)
    note = f"{left} entries of its head are not used"
    return taken, dataclasses.replace(
        report, unexpected=(*report.unexpected, *unused), notes=(*report.notes, note)
    )


def _part(name: str) -> str:
    """The first of the names of an entry, ``stages`` of ``stages_0`` as well."""
    return re.sub(r"_\d+$", "", name.partition(".")[0])
