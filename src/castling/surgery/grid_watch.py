"""The hooks of a module that holds attentions: they tell a ``Geometry`` when it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from castling.surgery.geometry import Geometry


class Watch:
    """The hooks of one module that holds attentions.

    Args:
        geometry: of its host.
        level: downsamplings between the patch embedding and the module's input.
        num_prefix_tokens: tokens in front of the grid.
    """

    def __init__(self, geometry: Geometry, level: int, num_prefix_tokens: int) -> None:
        self.geometry, self.level, self.num_prefix_tokens = geometry, level, num_prefix_tokens

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook."""
        if not in_graph():
            self.geometry.enter(self, args[0] if args else None)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        """Forward hook; also after a forward that raised."""
        if not in_graph():
            self.geometry.leave(self, output)


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
