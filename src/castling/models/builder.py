"""From a name to a model: ``timm:NAME`` (or ``NAME``), with an attention put in.

timm's model functions take ``**kwargs`` and hand them to a class. What a model takes is read off
that class, so that nothing is tried and taken back: ``img_size`` goes to the models that have one.
"""

from __future__ import annotations

import inspect
import sys
import typing
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import timm
from timm.models import is_model, list_models, model_entrypoint, parse_model_name
from torch import nn

from castling.attention import attention_config
from castling.models.published import NoPublishedWeightsError, no_weights, published_weights
from castling.models.registry import declared_arguments
from castling.surgery import Attention, Where, linearize_
from castling.utils.text import did_you_mean

#: Arguments that timm takes for every model, whatever its class.
_OF_TIMM = frozenset(
    {
        *("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        *("features_only", "out_indices", "feature_cls", "scriptable", "exportable"),
    }
)


class Arguments(NamedTuple):
    """What a model function takes.

    Attributes:
        names: of its arguments.
        closed: whether these are all; a class with ``**kwargs`` may take more.
    """

    names: frozenset[str]
    closed: bool


def build_model(
    name: str,
    kwargs: dict[str, Any],
    attention: str | dict[str, Any] | None = None,
    where: list[str] | dict[str, Any] | None = None,
    *,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """``timm.create_model``, then the attention put in.

    Args:
        name: a name in timm's registry, ours included, with or without ``timm:`` before it.
        kwargs: further keyword arguments of the model.
        attention: name, or dictionary of name and options; None keeps what the model has.
        where: names of attention layers to convert, or a plan; None means all.
        image_size: (height, width), passed as ``img_size`` to models that take one.
        pretrained: load timm's weights (needs the network).

    Raises:
        ValueError: no such model or attention, or the model does not take an argument.
        NoPublishedWeightsError: pretrained weights can be neither found nor downloaded.
    """
    name = timm_name(name)
    kwargs = dict(kwargs)
    taken = arguments_of(model_entrypoint(name.split(".")[0]))
    config = None if attention is None else attention_config(attention)
    if image_size is not None and "img_size" in taken.names:
        height, width = image_size
        kwargs.setdefault("img_size", height if height == width else image_size)
    if pretrained and (overlay := published_weights(name)):
        kwargs.setdefault("pretrained_cfg_overlay", overlay)
    try:
        return create_model(
            name,
            pretrained,
            attention=config,
            where=None if config is None else where,
            **kwargs,
        )
    except OSError as error:
        if not pretrained:
            raise
        raise NoPublishedWeightsError(no_weights(name, str(error))) from error
    except TypeError as error:
        if where is not None and "attention" in taken.names:
            kwargs["where"] = where  # it went into the model too
        raise ValueError(_refusal(name, kwargs, taken) or f"{name}: {error}") from error


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    attention: Attention | None = None,
    where: Where | None = None,
    **kwargs: Any,
) -> nn.Module:
    """``timm.create_model``, with an attention put into any model that can be converted.

    Args:
        model_name: a name in timm's registry, ours included.
        pretrained: load the weights that timm knows of (needs the network).
        attention: a configuration, a registered name, or a dictionary with ``name``; None keeps
            what the model has.
        where: which layers, as for :func:`castling.linearize_`; None means all.
        **kwargs: of ``timm.create_model``, and of the model.

    Raises:
        ValueError: the attention is unknown, or the model has none that can be replaced.
        TypeError: the model does not take an argument.
    """
    architecture = parse_model_name(model_name)[1].split(".")[0]
    inside = is_model(architecture) and (
        "attention" in arguments_of(model_entrypoint(architecture)).names
    )
    if inside:  # our builders leave other layers as their host has them
        given = {"attention": attention, "where": where}
        kwargs |= {name: value for name, value in given.items() if value is not None}
    model: nn.Module = timm.create_model(model_name, pretrained=pretrained, **kwargs)
    if not inside and attention is not None:
        linearize_(model, attention, where)
    return model


def timm_name(name: str) -> str:
    """``name`` without its prefix, checked to be in timm's registry.

    Raises:
        ValueError: it is not, or the prefix names a library that is not supported.
    """
    prefix, colon, rest = name.partition(":")
    if colon and prefix == "hf":
        raise ValueError(
            f"{name}: models of Hugging Face cannot be converted yet; use the timm model of the "
            "same family, such as timm:vit_base_patch16_224"
        )
    if colon and prefix != "timm":
        raise ValueError(f"{name}: the prefix of a model is timm: (default) or hf:, got {prefix!r}")
    name = rest if colon else name
    if "/" in name:
        raise ValueError(
            f"{name}: dense models, HEAD/BACKBONE, cannot be built by name yet; give the backbone "
            f"alone, {name.partition('/')[2]}"
        )
    base = name.split(".")[0]
    if not is_model(base):
        raise ValueError(
            f"timm knows no model {base!r}; castling models lists ours"
            f"{did_you_mean(base, list_models())}"
        )
    return name


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


def _refusal(name: str, kwargs: dict[str, Any], taken: Arguments) -> str:
    """Which argument the model does not take; empty where that is not what went wrong."""
    known = taken.names | _OF_TIMM
    unknown = [argument for argument in kwargs if argument not in known]
    if not unknown:
        return ""
    more = "" if taken.closed else ", and what its class passes on"
    return (
        f"{name} takes no argument {unknown[0]!r}; it takes {', '.join(sorted(taken.names))}{more}"
        f"{did_you_mean(unknown[0], taken.names)}"
    )
