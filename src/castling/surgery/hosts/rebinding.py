"""A host's ``forward`` with the function that computes its softmax replaced.

The code stays the host's; only the names that it looks up mean something else. So nothing global
changes: neither PyTorch, nor transformers' table, nor the configuration of the model, nor any layer
beside.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from castling.surgery.hosts.reading import INTERFACE, SDPA


def rebound(forward: Any, function: Callable[..., Tensor]) -> Callable[..., Any]:
    """``forward`` of a class as a function that calls another one for its attention.

    Args:
        forward: for which :func:`castling.surgery.hosts.reading.calls_function` holds.
        function: takes the place of ``torch.nn.functional.scaled_dot_product_attention``, and
            behind transformers' interface of every function there.
    """
    scope = dict(forward.__globals__)
    scope.pop("__name__", None)  # torch.compile would look the names up in the real module
    functional = _like(F, **{SDPA: function})
    networks = _like(nn, functional=functional)
    for name, value in scope.items():
        if value is F:
            scope[name] = functional
        elif value is nn:
            scope[name] = networks
        elif value is torch and SDPA in forward.__code__.co_names:
            scope[name] = _like(torch, nn=networks)
    if SDPA in scope:
        scope[SDPA] = function
    if INTERFACE in scope:
        scope[INTERFACE] = _Interface(function)
    bound = types.FunctionType(
        forward.__code__, scope, "forward", forward.__defaults__, forward.__closure__
    )
    bound.__kwdefaults__ = forward.__kwdefaults__
    return bound


def _like(module: types.ModuleType, **replaced: Any) -> types.ModuleType:
    """A module with some of its names replaced."""
    like = types.ModuleType(module.__name__.rpartition(".")[2])
    like.__dict__.update(module.__dict__ | replaced)
    return like


class _Interface(Mapping[str, Any]):
    """Stands for transformers' table of attention functions: every name means ours."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self.function = function

    def __getitem__(self, name: str) -> Any:
        return self.attend

    def __iter__(self) -> Iterator[str]:
        return iter(())

    def __len__(self) -> int:
        return 0

    def get_interface(self, name: str, default: Any) -> Any:
        """The function, whatever the model's configuration asks for."""
        return self.attend

    def attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        dropout: float = 0.0,
        is_causal: bool | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, None]:
        """(B, H, N, d) each -> (B, N, H, d) and no attention weights."""
        if is_causal is None:  # as transformers' own function for PyTorch's
            alone = attention_mask is None and query.shape[2] > 1
            is_causal = alone and bool(getattr(module, "is_causal", False))
        out = self.function(query, key, value, attention_mask, dropout, is_causal, scaling)
        return out.transpose(1, 2).contiguous(), None
