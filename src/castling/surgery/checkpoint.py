"""``load_checkpoint``: our files, timm's and the official ones of all three papers into a model.

Nothing in a file is executed, and a model is filled whole or not at all.
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, NamedTuple

from torch import Tensor, nn

from castling.attention import AttentionCore
from castling.surgery.checkpoint_files import read_content, weights_file
from castling.surgery.checkpoint_layouts import (
    Weights,
    bare,
    find_weights,
    outer_prefix,
    preference,
    prefixes,
)
from castling.surgery.checkpoint_names import may_be_missing, translate
from castling.surgery.checkpoint_report import LoadReport, Misfit
from castling.surgery.checkpoint_sizes import TableError, resize_tables, timm_names
from castling.surgery.checkpoint_values import as_own, fill, require_finite, require_plain
from castling.surgery.hosts import HostAttention

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
    """

    strict: bool = True
    key: str = ""
    prefer_ema: bool = False
    allow_head_mismatch: bool = False
    allow_new_attention: bool = False
    allow_non_finite: bool = False
    image_size: tuple[int, int] | None = None
    keep_head: bool = False


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
    if any(tensor.is_meta for tensor in _tensors(model).values()):
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
    target = _Target(model)
    own = target.own
    content = read_content(path)
    chosen, others = _choose(
        find_weights(content, weights_file(path), options.key), target, options.prefer_ema
    )
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


class _Target:
    """A model's state by its own names, without what the model may be wrapped in.

    Attributes:
        inner: the model without its wrapper.
        own: the state.
        names: bare name -> name in the model.
        heads: names of the classifier's state.
        head_modules: what the names of classifiers begin with.
        added: names of what converting an attention adds, and of what a switch removes.
        removed_by_switch: names of score biases.
    """

    def __init__(self, model: nn.Module) -> None:
        tensors = _tensors(model)
        outer = outer_prefix([bare(name) for name in tensors])
        self.names = {bare(name).removeprefix(outer): name for name in tensors}
        self.own = {name: tensors[full] for name, full in self.names.items()}
        self.inner = _uncompiled(model.get_submodule(outer.rstrip(".")))
        modules = _classifiers(self.inner)
        self.head_modules = tuple(f"{name}." for name in modules)
        self.heads = {name for name in self.own if name.startswith(self.head_modules)}
        self.removed_by_switch: set[str] = set()
        self.added: set[str] = set()
        for name, module in self.inner.named_modules():
            if isinstance(module, AttentionCore):
                prefix = f"{bare(name)}." if name else ""
                biases = module.bias_names if isinstance(module, HostAttention) else ()
                self.removed_by_switch |= {f"{prefix}{bias}" for bias in biases}
                added = tuple(f"{prefix}{part}" for part in (*module.added_names, *biases))
                self.added |= {n for n in self.own if n.startswith(added)}

    def named(self, names: Any) -> tuple[str, ...]:
        """Names in the model itself."""
        return tuple(self.names.get(name, name) for name in names)


def _tensors(model: nn.Module) -> State:
    """The state without what modules add by ``get_extra_state``."""
    return {n: t for n, t in model.state_dict().items() if isinstance(t, Tensor)}


def _uncompiled(model: nn.Module) -> nn.Module:
    """The model inside what ``torch.compile`` returned."""
    inner: Any = getattr(model, "_orig_mod", model)
    return inner if isinstance(inner, nn.Module) else model


def _classifiers(model: nn.Module) -> list[str]:
    """Names of the model's last linear layers, as timm's ``get_classifier`` tells."""
    if not hasattr(model, "get_classifier"):
        return []
    found: Any = model.get_classifier()  # type: ignore[operator]
    layers = found if isinstance(found, tuple | list) else (found,)
    return [n for n, module in model.named_modules() if any(module is layer for layer in layers)]


class _Candidate(NamedTuple):
    """Weights of a file under the model's names."""

    key: str
    state: State
    notes: tuple[str, ...]


def _choose(
    found: list[Weights], target: _Target, prefer_ema: bool
) -> tuple[_Candidate, list[str]]:
    """The weights that fill most of the model, and the keys of others that fill as much."""
    ranked = []
    for weights in found:
        for prefix, count in prefixes(weights.state).items():
            candidate = _candidate(weights, prefix, target)
            filled = _filled(candidate.state, target.own)
            rank = preference(weights.key, prefix, prefer_ema)
            asked = prefer_ema and rank[0] < 0 and filled > 0
            order = (not asked, -filled, rank, -count, -len(prefix))
            ranked.append((order, filled, candidate, prefix))
    ranked.sort(key=lambda entry: entry[0])
    _, most, best, prefix = ranked[0]
    others = [
        ".".join(part for part in (other.key, ended.rstrip(".")) if part)
        for _, filled, other, ended in ranked[1:]
        if filled == most > 0 and (other.key, ended) != (best.key, prefix)
    ]
    return best, list(dict.fromkeys(others))


def _candidate(weights: Weights, prefix: str, target: _Target) -> _Candidate:
    inside = {
        bare(name[len(prefix) :]): tensor
        for name, tensor in weights.state.items()
        if name.startswith(prefix)
    }
    notes = []
    if len(inside) < len(weights.state):
        left = len(weights.state) - len(inside)
        notes.append(f"took the entries under {prefix!r} and left {left} others")
    # The classifier of MIT's models stands beside their backbone.
    if prefix.endswith("backbone.") and any(".op_list." in name for name in inside):
        above = prefix.removesuffix("backbone.")
        return _candidate(weights, above, target)
    state, said = translate(inside, target.own, bool(target.heads))
    if any(name not in target.own for name in state):
        renamed = timm_names(target.inner, state)
        if _filled(renamed, target.own) > _filled(state, target.own) or (
            len(renamed) < len(state) and _filled(renamed, target.own) == _filled(state, target.own)
        ):
            said.append("names and sizes converted as timm does for this family")
            state = renamed
    return _Candidate(weights.key, state, (*notes, *said))


def _filled(state: State, own: State) -> int:
    """How many entries of a model a file has, those of another size counting half as much."""
    present = [name for name in own if name in state]
    return len(present) + sum(state[name].shape == own[name].shape for name in present)
