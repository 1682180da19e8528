"""``load_checkpoint``: our files, timm's and the official ones of all three papers into a model.

Nothing in a file is executed, and a model is filled whole or not at all.
"""

from __future__ import annotations

import dataclasses
import os

from torch import Tensor, nn

from castling.surgery.checkpoint_files import read_content, weights_file
from castling.surgery.checkpoint_layouts import Weights, find_weights
from castling.surgery.checkpoint_match import Target, choose, tensors_of
from castling.surgery.checkpoint_names import may_be_missing
from castling.surgery.checkpoint_report import LoadReport, Misfit
from castling.surgery.checkpoint_sizes import TableError, resize_tables
from castling.surgery.checkpoint_values import as_own, fill, require_finite, require_plain

State = dict[str, Tensor]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """The options of :func:`load_checkpoint`, and what is known of the file.

    Attributes:
        strict: see :func:`load_checkpoint`, as the next five.
        key: in the file.
        prefer_ema: averaged weights first.
        allow_head_mismatch: keep the model's classifier where the file's does not fit.
        allow_new_attention: the file's attention may lack what a conversion adds.
        allow_non_finite: take NaN and infinity.
        image_size: (height, width) in pixels that the file's position tables were made for.
        keep_head: keep the model's classifier in any case.
        classifiers: names of further layers whose size follows from the number of classes.
    """

    strict: bool = True
    key: str = ""
    prefer_ema: bool = False
    allow_head_mismatch: bool = False
    allow_new_attention: bool = False
    allow_non_finite: bool = False
    image_size: tuple[int, int] | None = None
    keep_head: bool = False
    classifiers: tuple[str, ...] = ()


def load_checkpoint(
    model: nn.Module,
    path: str | os.PathLike[str],
    strict: bool = True,
    *,
    key: str = "",
    prefer_ema: bool = False,
    allow_head_mismatch: bool = False,
    allow_new_attention: bool = False,
    allow_non_finite: bool = False,
    image_size: tuple[int, int] | None = None,
) -> LoadReport:
    """Fill ``model`` with the weights of a file, in place.

    Understood: safetensors and PyTorch files; our run folders and their ``.ckpt``; what timm reads
    for a model of this family (DINO, DINOv2, CLIP, DeiT, MViTv2 as their authors name them);
    CAS-ViT's releases, with or without ``dist_head`` (where the model has none, both heads are
    averaged: same logits) and dense norms; QT-ViT's and MIT EfficientViT's releases into
    ``qt_vit_*`` and timm's ``efficientvit_*``; the Castling-ViT reference block (``qkv``, ``proj``,
    ``dconv``). Keys and prefixes of data parallelism, compilation, trainers, self-distillation and
    detectors are found: docs/reference/file-formats.md lists them. Where a file holds several sets
    of weights, the one that fills most of the model is taken; among equals trained weights, then a
    teacher, its student, moving averages. Tables of positions, absolute and relative, and patch
    embeddings are resized to those of the model.

    Args:
        model: takes the weights' names.
        path: the file, or a run's folder.
        strict: False tolerates missing and unexpected entries, never shapes that do not fit.
        key: of the weights in the file, such as ``"model_ema"`` or ``"student"``; keys of nested
            dictionaries are joined by dots. Empty chooses as said above.
        prefer_ema: take averaged weights where the file has both.
        allow_head_mismatch: keep the model's own classifier where the file's has another size or is
            missing.
        allow_new_attention: leave what the model's attention has beyond the file's as it is, such
            as local residuals (``dconv``): for weights of the softmax host in a converted model.
        allow_non_finite: take weights with NaN or infinity.
        image_size: (height, width) in pixels that the file's positions were made for; needed where
            they are no square.

    Returns:
        what was loaded and what was not.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not one of weights, could run code, holds numbers that are no
            weights, or does not fit the model, or the model is on the meta device; the model is
            unchanged then.
    """
    if any(tensor.is_meta for tensor in tensors_of(model).values()):
        raise ValueError(
            "the model is on the meta device and has no memory to fill: create it on a real device"
        )
    options = LoadOptions(
        strict=strict,
        key=key,
        prefer_ema=prefer_ema,
        allow_head_mismatch=allow_head_mismatch,
        allow_new_attention=allow_new_attention,
        allow_non_finite=allow_non_finite,
        image_size=image_size,
    )
    state, report = prepare(model, path, options)
    fill(model, state, path)
    return report


def prepare(
    model: nn.Module, path: str | os.PathLike[str], options: LoadOptions
) -> tuple[State, LoadReport]:
    """The entries that a file has for ``model``, ready to be copied, and the report.

    The model is not changed; it may be on the meta device.

    Raises:
        FileNotFoundError: as :func:`load_checkpoint`.
        ValueError: as :func:`load_checkpoint`.
    """
    found = find_weights(read_content(path), weights_file(path), options.key)
    return prepare_weights(model, found, path, options)


def prepare_weights(
    model: nn.Module,
    found: list[Weights],
    path: str | os.PathLike[str],
    options: LoadOptions,
) -> tuple[State, LoadReport]:
    """:func:`prepare` of weights that were ``found`` in the file at ``path``."""
    target = Target(model, options.classifiers)
    own = target.own
    chosen, others = choose(found, target, options.prefer_ema)
    state, notes = chosen.state, list(chosen.notes)
    inside = {name: tensor for name, tensor in state.items() if name in own}
    require_plain(inside, own, path)
    state = as_own(state, own)
    if not options.allow_non_finite:
        require_finite({name: state[name] for name in inside}, path)
    resized: dict[str, str] = {}
    unknown_grid = ""
    try:
        state, resized = resize_tables(target.inner, state, own, options.image_size)
    except TableError as error:  # said below, beside what else does not fit
        unknown_grid = str(error)
    notes += [f"{name} resized from {change}" for name, change in resized.items()]
    shapes = [n for n, tensor in state.items() if n in own and tensor.shape != own[n].shape]
    missing = [n for n in own if n not in state and not may_be_missing(n)]
    unexpected = [n for n in state if n not in own]
    kept: list[str] = []
    if options.allow_head_mismatch or options.keep_head:
        misfits = {n.rpartition(".")[0] for n in (*shapes, *missing) if n in target.heads}
        # A layer's weight and bias belong together.
        kept = [n for n in own if n in target.heads and n.rpartition(".")[0] in misfits]
        foreign = [n for n in unexpected if n.startswith(target.head_modules)]
        if kept or options.keep_head:
            unexpected = [n for n in unexpected if n not in foreign]
        if options.keep_head:
            kept = [n for n in own if n in target.heads]
    new = [n for n in missing if n in target.added] if options.allow_new_attention else []
    left_out = {*kept, *new}
    shapes = [name for name in shapes if name not in left_out]
    missing = [name for name in missing if name not in left_out]
    if shapes or (options.strict and (missing or unexpected)):
        raise ValueError(
            Misfit(
                state=state,
                own=own,
                missing=missing,
                unexpected=unexpected,
                shapes=shapes,
                heads=target.heads,
                switch=target.removed_by_switch,
                attention=target.added,
                unknown_grid=unknown_grid,
            ).message(path)
        )
    taken = {n: tensor for n, tensor in state.items() if n in own and n not in left_out}
    if not taken:
        raise ValueError(f"{path} holds nothing that this {type(model).__name__} has")
    report = LoadReport(
        path=str(path),
        source=chosen.key,
        loaded=len(taken),
        missing=target.named(n for n in own if n not in taken and n not in left_out),
        unexpected=tuple(unexpected),
        kept_head=target.named(kept),
        notes=tuple(notes),
        resized=target.named(resized),
        new=target.named(new),
        others=tuple(others),
    )
    return {target.names[name]: tensor for name, tensor in taken.items()}, report
