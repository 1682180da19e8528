"""Queries, keys and values of every attention of a model, converted or not.

A copy of the model, which shares all its weights, is run in its place: softmax attentions of the
supported hosts are exchanged there for our softmax, which computes the same and can be asked for
its parts. That it does is checked on every image: a layer whose copy returns something else is
listed with the reason.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention import AttentionCore, TokenMixer
from castling.conversion.layers import tokens_of
from castling.explanation.choice import choose_layers, likely_grid_of, said_prefix
from castling.explanation.figures import Grid
from castling.explanation.implied import ProjectedTokens
from castling.surgery.linearize import linearize_
from castling.surgery.selection import Where, attention_layers
from castling.surgery.tap import Taps, tap

#: Largest difference of a layer's copy, in parts of the output's norm; float32 leaves about 1e-6.
_SAME = 1e-3


@dataclasses.dataclass(frozen=True)
class Recorded:
    """One image's call of an attention.

    Attributes:
        layer: of the copy.
        call: what it projected.
        grid: (h, w) of the keys behind the prefix; None where nobody knows it.
        told: whether the host said so; else it is the one in the proportions of the image.
        prefix: tokens in front of it.
        calls: how often the layer ran for this image.
    """

    layer: AttentionCore
    call: ProjectedTokens
    grid: Grid | None
    told: bool
    prefix: int
    calls: int


class Recorder:
    """A model, and the copy of it that is asked for queries, keys and values.

    Args:
        model: any model with attentions; it stays as it is.
        layers: which, as ``where`` of :func:`castling.linearize_`; None for all.

    Attributes:
        attentions: layer → name of its attention, in order of execution.
        missing: layer → why it has no matrix.
        unknown: those that no adapter knows → why.
        every: whether all attentions of the model were chosen.

    Raises:
        ValueError: the model holds no attention, or ``layers`` matches none.
    """

    def __init__(self, model: nn.Module, layers: Where | None = None) -> None:
        self.model = model
        choice = choose_layers(model, layers)
        self.attentions = {
            name: _attention_of(layer, known=name not in choice.unknown)
            for name, layer in choice.layers.items()
        }
        self.unknown = choice.unknown
        self.missing = dict(choice.unknown)
        self.every = choice.every
        chosen = {n: layer for n, layer in choice.layers.items() if n not in choice.unknown}
        shared = {id(t): t for t in itertools.chain(model.parameters(), model.buffers())}
        self.copy = copy.deepcopy(model, shared)
        for name, layer in chosen.items():
            if not isinstance(layer, TokenMixer):
                self._exchange(name)
            elif not isinstance(layer, AttentionCore):
                self.missing[name] = (
                    f"{layer.config.name} mixes a map with its channels: no matrix of tokens "
                    "describes it"
                )
        self.cores = {
            name: layer
            for name, layer in attention_layers(self.copy).items()
            if isinstance(layer, AttentionCore) and name in chosen
        }

    def _exchange(self, name: str) -> None:
        """Put our softmax in the place of one attention of the copy."""
        try:
            with _quiet(logging.getLogger(linearize_.__module__)):
                linearize_(self.copy, "softmax", where=[name])
        except ValueError as error:
            self.missing[name] = str(error)

    def record(self, image: Tensor) -> dict[str, Recorded | str]:
        """What every layer did with one image (1, 3, H, W), or why that cannot be told."""
        names = list(self.cores)
        found: dict[str, Recorded | str] = {}
        if not names:
            return found
        with torch.no_grad():
            with tap(self.model, names, detach=True) as outputs:
                self.model(image)
            calls: dict[str, list[ProjectedTokens]] = {name: [] for name in names}
            with ExitStack() as stack:
                taps = stack.enter_context(tap(self.copy, names, detach=True))
                for name, layer in self.cores.items():
                    stack.enter_context(_recorded(layer, calls[name].append))
                self.copy(image)
        for name in names:
            if not calls[name]:
                found[name] = "it did not run"
            elif (error := _difference(name, outputs, taps)) > _SAME:
                found[name] = (
                    f"the softmax put in its place gives another output ({error:.1e} of its norm)"
                )
            else:
                found[name] = self._placed(name, calls[name], taps[name][0].grid, image)
        return found

    def _placed(
        self, name: str, calls: list[ProjectedTokens], outside: Grid | None, image: Tensor
    ) -> Recorded:
        """The first call with its grid: what ``attend`` was told, or the layer's tokens have."""
        call = calls[0]
        keys = call.key.shape[1]
        grid = call.grid or outside
        if grid is not None and grid[0] * grid[1] > keys:
            grid = None  # of an image whose tokens come in windows
        told = grid is not None
        if not told:
            size = (image.shape[-2], image.shape[-1])
            grid = likely_grid_of(call.key.flatten(2), size, said_prefix(self.model))
        prefix = 0 if grid is None else keys - grid[0] * grid[1]
        return Recorded(self.cores[name], call, grid, told, prefix, len(calls))


def _attention_of(layer: nn.Module, *, known: bool) -> str:
    if isinstance(layer, TokenMixer):
        return layer.config.name
    return "softmax" if known else type(layer).__name__


@contextmanager
def _recorded(layer: AttentionCore, keep: Callable[[ProjectedTokens], None]) -> Iterator[None]:
    """Within the context, ``layer`` hands over what its ``attend`` is called with."""
    own = layer.attend
    options = {field.name for field in dataclasses.fields(ProjectedTokens)}

    def attend(query: Tensor, key: Tensor, value: Tensor, **given: Any) -> Tensor:
        output = own(query, key, value, **given)
        known = {name: each for name, each in given.items() if name in options}
        keep(ProjectedTokens(query=query, key=key, value=value, output=output, **known))
        return output

    layer.__dict__["attend"] = attend
    try:
        yield
    finally:
        del layer.__dict__["attend"]


def _difference(name: str, outputs: Taps, taps: Taps) -> float:
    """Of the first outputs of a layer and of its copy, in parts of the norm."""
    wanted, found = (tokens_of(each[name][0].output).cpu().double() for each in (outputs, taps))
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


@contextmanager
def _quiet(logger: logging.Logger) -> Iterator[None]:
    """Without the warning about attentions that stay, which are listed by name."""

    def drop(record: logging.LogRecord) -> bool:
        return False

    logger.addFilter(drop)
    try:
        yield
    finally:
        logger.removeFilter(drop)
