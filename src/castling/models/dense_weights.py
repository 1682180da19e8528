"""Starting weights of dense models: a classifier's into the backbone, a dense model's into all."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from typing import Any

from torch import Tensor, nn

from castling.models.backbone import PREFIX, Backbone, inner_where
from castling.models.builder import create_model
from castling.models.dense import HeadConfig, head_spec
from castling.models.dense_builder import DenseArguments, from_arguments
from castling.models.pretrained_encoder import (
    PRETRAINING,
    encoder_entries,
    names_inside,
    share_of,
)
from castling.models.skeleton import without_memory
from castling.surgery import LoadReport
from castling.surgery.checkpoint import LoadOptions, prepare
from castling.surgery.checkpoint_files import read_content, weights_file
from castling.surgery.checkpoint_layouts import find_weights
from castling.surgery.checkpoint_names import may_be_missing
from castling.surgery.checkpoint_values import fill

State = dict[str, Tensor]
Path = str | os.PathLike[str]
Prepare = Callable[[nn.Module, Path, LoadOptions], tuple[State, LoadReport]]


def prepare_dense(
    model: nn.Module,
    arguments: DenseArguments,
    path: Path,
    head: Mapping[str, Any] | None,
    options: LoadOptions,
) -> tuple[State, LoadReport]:
    """The entries that a file has for a dense model, which is not changed, and the report.

    Args:
        model: what will be trained; may be on the meta device.
        arguments: that it was built from.
        path: a file of weights, or the folder of a run or saved model.
        head: of the saved model that the weights belong to, as its card says; empty for a
            classifier, None where there is no card.
        options: as for ``prepare``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not fit, or holds no plain finite weights.
    """
    dense = _is_dense(path, options.key) if head is None else bool(head)
    if not dense:
        return _of_classifier(model, arguments, path, options)
    theirs = head_spec(str(head["name"])) if head else None
    if theirs is not None and theirs.config is not type(arguments.options):
        if theirs.task == PRETRAINING:
            return _of_classifier(model, arguments, path, options, encoder_entries)
        assert head is not None
        return _of_backbone(model, path, options, str(head["name"]))
    return prepare(model, path, dataclasses.replace(options, classifiers=class_layers(model)))


def class_layers(model: nn.Module) -> tuple[str, ...]:
    """Names of the layers of a dense model whose size follows from the number of classes."""
    arguments: Any = model.dense_arguments
    more = arguments._replace(num_classes=arguments.num_classes + 1)
    other = without_memory(lambda: from_arguments(more)).state_dict()
    return tuple(
        dict.fromkeys(
            name.rpartition(".")[0]
            for name, tensor in model.state_dict().items()
            if tensor.shape != other[name].shape
        )
    )


def _is_dense(path: Path, key: str) -> bool:
    """Whether a file holds weights of a dense model of ours."""
    found = find_weights(read_content(path), weights_file(path), key)
    return any(PREFIX in name for weights in found for name in weights.state)


def _of_backbone(
    model: nn.Module, path: Path, options: LoadOptions, head: str
) -> tuple[State, LoadReport]:
    """The backbone of a dense model with another head."""
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    state, report = prepare(backbone, path, dataclasses.replace(options, keep_head=False))
    note = f"only the backbone is theirs: they have the head {head}; neck and head start afresh"
    return (
        {f"backbone.{name}": tensor for name, tensor in state.items()},
        dataclasses.replace(report, notes=(*report.notes, note)),
    )


def _of_classifier(
    model: nn.Module,
    arguments: DenseArguments,
    path: Path,
    options: LoadOptions,
    prepare: Prepare = prepare,
) -> tuple[State, LoadReport]:
    """The backbone, of the classifier that it is the features of.

    With :func:`encoder_entries` in the place of ``prepare``, of a pre-trained model.
    """
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    where = None
    if arguments.attention is not None:
        where = inner_where(backbone.body, arguments.attention, arguments.where)
    classifier = without_memory(
        lambda: create_model(
            arguments.backbone,
            attention=arguments.attention,
            where=where,
            **arguments.kwargs,
        )
    )
    found, report = prepare(classifier, path, dataclasses.replace(options, keep_head=False))
    own = {name: None for name in model.state_dict() if name.startswith(PREFIX)}
    names = {name: inside for name in classifier.state_dict() if (inside := _inside(name, own))}
    state = {names[name]: tensor for name, tensor in found.items() if name in names}
    if not state:
        raise ValueError(f"{path} holds nothing that the backbone {arguments.backbone} has")
    new = tuple(names[name] for name in report.new if name in names)
    lacking = (n for n in own if n not in state and n not in new and not may_be_missing(n))
    notes = [
        f"they are of the model {arguments.backbone} and fill the backbone; neck and head start "
        "afresh"
    ]
    if prepare is encoder_entries:
        notes.append(share_of(len(state), len(own), "backbone"))
    return state, dataclasses.replace(
        report,
        loaded=len(state),
        missing=tuple(lacking),
        kept_head=(),
        resized=tuple(names[name] for name in report.resized if name in names),
        new=new,
        notes=(*report.notes, *notes),
    )


def fill_backbone(backbone: Backbone, name: str, kwargs: Mapping[str, Any], path: Path) -> None:
    """Fill a backbone, in place, with the weights of the model that it is the features of.

    Args:
        backbone: of the model ``name`` of timm's registry, with ``kwargs``.
        name: see ``backbone``.
        kwargs: see ``backbone``.
        path: a file of weights, or the folder of a run or saved model.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file does not fit.
    """
    holder = nn.Module()
    holder.backbone = backbone
    arguments = DenseArguments("", HeadConfig(), 0, name, dict(kwargs))
    state, _ = _of_classifier(holder, arguments, path, LoadOptions(allow_head_mismatch=True))
    fill(holder, state, path)


def _inside(name: str, own: Collection[str]) -> str:
    """A classifier's entry by its name in a backbone; empty where that does not have it."""
    found = (PREFIX + inside for inside in names_inside(name))
    return next((each for each in found if each in own), "")
