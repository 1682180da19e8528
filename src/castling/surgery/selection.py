"""The attentions of a model by name, and how ``where`` chooses among them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import nn

from castling.attention import AttentionConfig, TokenMixer
from castling.surgery.hosts import adapter_for, adapter_on_request
from castling.surgery.plan import Plan, load_plan

Attention = str | AttentionConfig | dict[str, Any]
Selection = str | Iterable[str] | Callable[[str, nn.Module], bool] | Mapping[str, Attention | None]
Where = Selection | Plan | os.PathLike[str]


def convertible(model: nn.Module, where: Where | None = None) -> dict[str, nn.Module]:
    """The attentions of ``model`` that can be replaced, by name, in order of execution.

    Args:
        model: any model.
        where: may name further layers, whole names only: those that an adapter can take whose fit
            nobody has proved.
    """
    return _named(model, lambda module: adapter_for(module) is not None, where)


def attention_layers(model: nn.Module, where: Where | None = None) -> dict[str, nn.Module]:
    """All attentions of ``model``: those of :func:`convertible`, and our own token mixers."""
    return _named(model, lambda m: isinstance(m, TokenMixer) or adapter_for(m) is not None, where)


def _named(
    model: nn.Module, wanted: Callable[[nn.Module], bool], where: Where | None
) -> dict[str, nn.Module]:
    """Modules by their names in the model itself, also where timm wrapped it for its features.

    Those that are wanted, and those that ``where`` names in full and an adapter can take.
    """
    names: Any = () if where is None or callable(where) or isinstance(where, Plan) else where
    names = {names} if isinstance(names, str | os.PathLike) else set(names)
    wrapped = isinstance(model, FeatureGetterNet)
    own = {n.removeprefix("model.") if wrapped else n: m for n, m in model.named_modules()}
    return {
        name: module
        for name, module in own.items()
        if wanted(module) or (name in names and adapter_on_request(module) is not None)
    }


def owner_of(model: nn.Module) -> nn.Module:
    """The model that the names of its layers count from."""
    return model.model if isinstance(model, FeatureGetterNet) else model


def read_plan(where: Where | None) -> Selection | Plan | None:
    """``where`` itself, or the plan that it is the path of (``….json``)."""
    if isinstance(where, os.PathLike) or (isinstance(where, str) and where.endswith(".json")):
        return load_plan(where)
    return where


def choose(layers: Mapping[str, nn.Module], where: Selection | None) -> dict[str, Attention | bool]:
    """Chosen layer -> the attention that a mapping names for it, or True.

    Args:
        layers: by name.
        where: None for all; a name, a shell pattern or the name of an enclosing module, or several
            of them; a predicate ``(name, module) -> bool``; a mapping from such names to an
            attention, None leaving the layer out.

    Raises:
        ValueError: a name matches no layer, or nothing is chosen.
    """
    if where is None:
        return dict.fromkeys(layers, True)
    chosen: dict[str, Attention | bool] = {}
    if callable(where):
        chosen = {name: True for name, module in layers.items() if where(name, module)}
    else:
        if isinstance(where, str):
            where = [where]
        wanted = where if isinstance(where, Mapping) else dict.fromkeys(where, True)
        for pattern, choice in wanted.items():
            names = [name for name in layers if _matches(name, pattern)]
            if not names:
                raise ValueError(
                    f"where={pattern!r} matches no attention of this model; it has: "
                    f"{', '.join(layers)}"
                )
            if choice is not None:
                chosen.update(dict.fromkeys(names, choice))
    if not chosen:
        raise ValueError(
            f"where selects none of the model's attentions; it has: {', '.join(layers)}"
        )
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """A full name, a shell pattern, or the name of a module that holds the attention."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")
