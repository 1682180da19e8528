"""Listings of models and attentions for the command line."""

from __future__ import annotations

import dataclasses
import inspect
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import timm

from castling.attention import attention_config
from castling.attention import list_attentions as attention_names
from castling.models.dense import head_config, head_spec, head_to_dict
from castling.models.dense import list_heads as head_names
from castling.models.registry import list_models as model_names
from castling.ops.macs import macs
from castling.surgery import strip_
from castling.utils.text import did_you_mean


@dataclass(frozen=True)
class ModelEntry:
    """A model of the registry.

    Attributes:
        name: for ``timm.create_model``.
        summary: first line of its documentation.
        input_size: default (channels, height, width).
        parameters: number of parameters without auxiliary branches; None if not counted.
        macs: multiply-accumulates per image without auxiliary branches; None if not counted.
    """

    name: str
    summary: str
    input_size: tuple[int, int, int]
    parameters: int | None = None
    macs: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        size = "×".join(str(side) for side in self.input_size[1:])
        counted = ""
        if self.parameters is not None and self.macs is not None:
            counted = f"{self.parameters / 1e6:9.2f} M  {self.macs / 1e9:8.4f} G  "
        return f"{self.name:34}{size:>9}  {counted}{self.summary}"


@dataclass(frozen=True)
class HeadEntry:
    """A head of dense models.

    Attributes:
        name: before the slash of ``HEAD/BACKBONE``.
        task: that trains it.
        summary: first line of its builder's documentation.
        options: option → default.
    """

    name: str
    task: str
    summary: str
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"{self.name + '/BACKBONE':34}{self.task:>13}  {self.summary}"


@dataclass(frozen=True)
class AttentionEntry:
    """A registered attention.

    Attributes:
        name: in recipes and on the command line.
        config: name of its configuration class.
        summary: its formula.
        options: option → default.
    """

    name: str
    config: str
    summary: str
    options: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        options = ", ".join(f"{key}={value!r}" for key, value in self.options.items())
        return f"{self.name}\n    {self.summary}\n    castling.{self.config}({options})"


def list_models(pattern: str = "*", *, count: bool = False) -> list[ModelEntry]:
    """The models of this package that have a name of their own.

    Args:
        pattern: shell pattern of names.
        count: build each model and count parameters and multiply-accumulates; takes seconds.

    Raises:
        ValueError: no name of a model or head matches.
    """
    names = model_names(pattern)
    if not names and not list_heads(pattern):
        raise ValueError(
            f"no model matches {pattern!r}; castling models lists all"
            f"{did_you_mean(pattern.strip('*'), [*model_names(), *head_names()])}"
        )
    return [_model_entry(name, count) for name in names]


def list_heads(pattern: str = "*") -> list[HeadEntry]:
    """The heads whose names match a shell pattern, for dense models ``HEAD/BACKBONE``."""
    return [_head_entry(name) for name in head_names() if fnmatchcase(name, pattern)]


def _head_entry(name: str) -> HeadEntry:
    options = head_to_dict(name, head_config(name))
    summary = _summary(head_spec(name).build)
    return HeadEntry(options.pop("name"), head_spec(name).task, summary, options)


def _model_entry(name: str, count: bool) -> ModelEntry:
    build = timm.models.model_entrypoint(name)
    default = timm.get_pretrained_cfg(name) if timm.is_model_pretrained(name) else None
    default = default or timm.models.get_pretrained_cfg(name, allow_unregistered=True)
    size = tuple(default.input_size) if default is not None else (3, 224, 224)
    entry = ModelEntry(name, _summary(build), size)
    if not count:
        return entry
    model = build()
    strip_(model)
    counted = macs(model, size)
    return dataclasses.replace(entry, parameters=counted.parameters, macs=counted.total)


def list_attentions() -> list[AttentionEntry]:
    """The registered attentions."""
    entries = []
    for name in attention_names():
        config = attention_config(name)
        options = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        entries.append(AttentionEntry(name, type(config).__name__, _summary(type(config)), options))
    return entries


def _summary(documented: Any) -> str:
    return (inspect.getdoc(documented) or "").split("\n", 1)[0].replace("``", "")
