"""Which attentions of a model are explained, and where their tokens lie on the image."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor, nn

from castling.explanation.figures import Grid, fitting_grid
from castling.surgery.hosts import why_left
from castling.surgery.linearize_report import unknown_attentions
from castling.surgery.plan import Plan
from castling.surgery.selection import Where, attention_layers, choose, owner_of, read_plan

#: How far, in tokens, the sides of a grid may lie from the image's proportions.
_NEAR = 0.75


@dataclasses.dataclass(frozen=True)
class Choice:
    """The attentions to be explained.

    Attributes:
        layers: by name, in order of execution.
        unknown: those among them that no adapter knows → why.
        every: whether they are all attentions of the model, and all known.
    """

    layers: dict[str, nn.Module]
    unknown: dict[str, str]
    every: bool


def choose_layers(model: nn.Module, layers: Where | None) -> Choice:
    """Those that ``layers`` chooses, as ``where`` of :func:`castling.linearize_`; None for all.

    Raises:
        ValueError: there is none, or ``layers`` matches none.
    """
    where = read_plan(layers)
    owner = owner_of(model)
    found = attention_layers(model, where)
    unknown = {n: owner.get_submodule(n) for n in unknown_attentions(owner) if n not in found}
    if not found and not unknown:
        raise ValueError(f"{type(model).__name__} holds no attention that can be explained")
    if "" in found:
        raise ValueError("an attention cannot be explained alone: pass the model that holds it")
    both = {name: m for name, m in owner.named_modules() if name in found or name in unknown}
    try:
        chosen = choose(both, where.linear if isinstance(where, Plan) else where)
    except ValueError as error:
        raise ValueError(str(error).replace("where", "layers", 1)) from error
    return Choice(
        {name: layer for name, layer in both.items() if name in chosen},
        {
            name: why_left(layer).replace("where=", "layers=")
            for name, layer in unknown.items()
            if name in chosen
        },
        every=not unknown and len(chosen) == len(found),
    )


def said_prefix(model: nn.Module) -> int:
    """The prefix tokens that a model of timm's says it has; 0 where it says nothing."""
    said: Any = getattr(owner_of(model), "num_prefix_tokens", 0)
    return said if isinstance(said, int) else 0


def likely_grid(count: int, size: tuple[int, int]) -> Grid | None:
    """The (h, w) of ``count`` tokens in the proportions of an image; None where none has them."""
    return fitting_grid(count, size, within=_NEAR) if count > 0 else None


def likely_grid_of(tokens: Any, size: tuple[int, int], prefix: int) -> Grid | None:
    """The grid of one image's tokens, where its attention does not tell.

    Args:
        tokens: (1, N, C), or a map (1, C, h, w) or (1, h, w, C).
        size: (height, width) of the image.
        prefix: tokens of (1, N, C) in front of the grid; some layers see none of them.
    """
    if not isinstance(tokens, Tensor) or tokens.shape[0] != 1:
        return None  # of several windows
    if tokens.dim() == 3:
        return likely_grid(tokens.shape[1] - prefix, size) or likely_grid(tokens.shape[1], size)
    if tokens.dim() == 4:
        sides = (tuple(tokens.shape[2:]), tuple(tokens.shape[1:3]))
        for height, width in sides:
            if likely_grid(height * width, size) == (height, width):
                return height, width
    return None
