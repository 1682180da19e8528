"""The hooks of a module that holds attentions: they tell a ``Geometry`` when it runs."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import nn

from castling.surgery.grid_records import TokenGrid


class Position(Protocol):
    """Where in its host an attention stands; see :class:`castling.surgery.Place`."""

    level: int
    num_prefix_tokens: int


class Follower(Protocol):
    """What a ``Geometry`` is to its watches."""

    def enter(self, watch: Watch, tokens: Any) -> None:
        """A watched module is called."""

    def leave(self, watch: Watch, output: Any) -> None:
        """A watched module has returned, or raised."""

    def give(self, watch: Watch, grid: TokenGrid | None) -> TokenGrid | None:
        """Say the grid that a watched module is called with in this thread; None ends that."""


class Watch:
    """The hooks of one module that holds attentions.

    Args:
        geometry: of its host.
        place: that of the first attention inside, whose tokens are the module's.
    """

    def __init__(self, geometry: Follower, place: Position) -> None:
        self.geometry, self.place = geometry, place

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward pre-hook, with keyword arguments."""
        if not in_graph():
            self.geometry.enter(self, tokens_among(args, kwargs))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook; also after a forward that raised."""
        if not in_graph():
            self.geometry.leave(self, output)


def tokens_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The tokens that a module is called with, by position or by whatever name; None without.

    Positional ones come first; of keywords it is the first (B, N, C).
    """
    if args:
        return args[0]
    named = (v for v in kwargs.values() if isinstance(v, torch.Tensor) and v.dim() == 3)
    return next(named, None)


def watches(module: nn.Module) -> list[Watch]:
    """The watches on ``module`` and on the modules inside it."""
    return [watch for part in module.modules() for watch in watches_of(part)]


def watches_of(module: nn.Module) -> list[Watch]:
    """The watches on ``module`` itself."""
    owners = map(owner_of_hook, module._forward_pre_hooks.values())
    return [owner for owner in owners if isinstance(owner, Watch)]


def in_graph() -> bool:
    """Whether this code is being compiled, exported or traced."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def owner_of_hook(hook: Any) -> Any:
    """The object whose method a hook is, or None."""
    return getattr(hook, "__self__", None)
