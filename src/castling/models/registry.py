"""Which models of timm's registry are ours, and what their functions take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import timm
from timm.models import model_entrypoint
from torch import nn

from castling.surgery.self_description import ARCHITECTURE

FunctionT = TypeVar("FunctionT", bound=Callable[..., nn.Module])
_ARGUMENTS: dict[Callable[..., Any], tuple[type[nn.Module], tuple[str, ...]]] = {}


def list_models(pattern: str = "*") -> list[str]:
    """Names of this package's models that match a shell pattern, sorted as timm sorts.

    The function that only saved files name is left out: it builds nothing by itself.
    """
    names: list[str] = timm.list_models(pattern, exclude_filters=ARCHITECTURE)
    return [n for n in names if model_entrypoint(n).__module__.startswith("castling.")]


def takes(network: type[nn.Module], *names: str) -> Callable[[FunctionT], FunctionT]:
    """Decorator: a model function takes what ``network`` takes, and the arguments ``names``.

    For functions that convert a host; elsewhere the annotation of the result says it.
    """

    def declare(function: FunctionT) -> FunctionT:
        _ARGUMENTS[function] = network, names
        return function

    return declare


def declared_arguments(
    function: Callable[..., nn.Module],
) -> tuple[type[nn.Module], tuple[str, ...]] | None:
    """What :func:`takes` declared of a model function, or None."""
    return _ARGUMENTS.get(function)
