"""What a model function of timm's registry takes, read off its class.

timm's model functions take ``**kwargs`` and hand them to a class, so that nothing is tried and
taken back.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from timm.models import model_entrypoint
from torch import nn

from castling.models.registry import declared_arguments


class Arguments(NamedTuple):
    """What a model function takes.

    Attributes:
        names: of its arguments.
        closed: whether these are all; a class with ``**kwargs`` may take more.
    """

    names: frozenset[str]
    closed: bool


def arguments_of(function: Callable[..., nn.Module]) -> Arguments:
    """The arguments of a model function: its own, and those of the class it returns."""
    names = {name for name, p in _parameters(function) if p.kind is not p.VAR_KEYWORD}
    declared = declared_arguments(function)
    classes = [declared[0]] if declared else list(_returned(function)) or _networks(function)
    closed = bool(classes)
    for network in classes:
        found = _constructor_arguments(network)
        names |= found.names
        closed &= found.closed
    return Arguments(frozenset(names.union(declared[1] if declared else ())), closed)


def takes_image_size(name: str) -> bool:
    """Whether a model of timm's registry is made for an image size, ``img_size``."""
    return "img_size" in arguments_of(model_entrypoint(name.split(".")[0])).names


def _constructor_arguments(network: type[nn.Module]) -> Arguments:
    """Along the classes that a constructor passes its ``**kwargs`` on to."""
    names: set[str] = set()
    for base in network.__mro__[: network.__mro__.index(nn.Module)]:
        if "__init__" not in vars(base):
            continue
        parameters = _parameters(vars(base)["__init__"])
        names |= {n for n, p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        if all(p.kind is not p.VAR_KEYWORD for _, p in parameters):
            return Arguments(frozenset(names - {"self"}), closed=True)
    return Arguments(frozenset(names - {"self"}), closed=False)


def _parameters(function: Callable[..., Any]) -> list[tuple[str, inspect.Parameter]]:
    return list(inspect.signature(function).parameters.items())


def _returned(function: Callable[..., nn.Module]) -> Iterator[type[nn.Module]]:
    """The classes in the annotation of a model function's result."""
    annotation = inspect.signature(function).return_annotation
    if isinstance(annotation, str):
        annotation = typing.get_type_hints(function).get("return")
    for found in typing.get_args(annotation) or (annotation,):
        if isinstance(found, type) and issubclass(found, nn.Module) and found is not nn.Module:
            yield found


def _networks(function: Callable[..., nn.Module]) -> list[type[nn.Module]]:
    """For functions without annotation: the classes of their file that take ``num_classes``."""
    return [
        found
        for found in vars(sys.modules[function.__module__]).values()
        if isinstance(found, type)
        and issubclass(found, nn.Module)
        and found.__module__ == function.__module__
        and "num_classes" in inspect.signature(found).parameters
    ]
