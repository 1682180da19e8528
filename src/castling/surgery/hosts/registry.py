"""The registry of host families: which adapter takes over which attention."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

from torch import nn

from castling.surgery.hosts.base import HostAttention

_ONE_QUERY = "one query, or a few, for all tokens of an image"
_CHANNELS = "it attends across channels"
#: Attentions of timm that there is nothing to gain from, and why.
LINEAR_ALREADY = {
    "timm.layers.attention_pool.AttentionPoolLatent": _ONE_QUERY,
    "timm.layers.attention_pool2d.AttentionPool2d": _ONE_QUERY,
    "timm.layers.attention_pool2d.RotAttentionPool2d": _ONE_QUERY,
    "timm.models.cait.ClassAttn": _ONE_QUERY,
    "timm.models.coat.FactorAttnConvRelPosEnc": "keys meet values first",
    "timm.models.crossvit.CrossAttention": _ONE_QUERY,
    "timm.models.davit.ChannelAttention": _CHANNELS,
    "timm.models.davit.ChannelAttentionV2": _CHANNELS,
    "timm.models.edgenext.CrossCovarianceAttn": _CHANNELS,
    "timm.models.efficientvit_mit.LiteMLA": "ReLU feature maps",
    "timm.models.mobilevit.LinearSelfAttention": "separable attention",
    "timm.models.volo.ClassAttention": _ONE_QUERY,
    "timm.models.xcit.XCA": _CHANNELS,
    "timm.models.xcit.ClassAttn": _ONE_QUERY,
}

HostT = TypeVar("HostT", bound=type[HostAttention])
_ADAPTERS: dict[type[nn.Module], type[HostAttention]] = {}
_ADAPTERS_BY_NAME: dict[str, type[HostAttention]] = {}
_ON_REQUEST: dict[Callable[[nn.Module], bool], type[HostAttention]] = {}


def register_host(*host_classes: type[nn.Module]) -> Callable[[HostT], HostT]:
    """Class decorator: the adapter for these attention classes, and for itself."""

    def register(adapter: HostT) -> HostT:
        _ADAPTERS.update(dict.fromkeys((*host_classes, adapter), adapter))
        return adapter

    return register


def register_named_hosts(*names: str) -> Callable[[HostT], HostT]:
    """Class decorator: the adapter for attention classes of libraries that are not imported here.

    Args:
        *names: qualified names of the classes.
    """

    def register(adapter: HostT) -> HostT:
        _ADAPTERS_BY_NAME.update(dict.fromkeys(names, adapter))
        return adapter

    return register


def register_host_on_request(fits: Callable[[nn.Module], bool]) -> Callable[[HostT], HostT]:
    """Class decorator: the adapter for modules that fit, where a user names them.

    Args:
        fits: whether the adapter can take a module.
    """

    def register(adapter: HostT) -> HostT:
        _ON_REQUEST[fits] = adapter
        return adapter

    return register


def adapter_for(module: nn.Module) -> type[HostAttention] | None:
    """The adapter for an attention module, or None; subclasses count only where registered.

    Attentions of text models have none: they are causal, or wait for a mask of padding.
    """
    kind = type(module)
    adapter = _ADAPTERS.get(kind) or _ADAPTERS_BY_NAME.get(qualified_name(kind))
    return None if adapter is None or _of_text(module) else adapter


def adapter_on_request(module: nn.Module) -> type[HostAttention] | None:
    """The adapter for a module that a user names: :func:`adapter_for`, or one that fits it."""
    if qualified_name(type(module)) in LINEAR_ALREADY:
        return None
    fitting = (adapter for fits, adapter in _ON_REQUEST.items() if fits(module))
    return adapter_for(module) or next(fitting, None)


def why_left(module: nn.Module) -> str:
    """Why :func:`adapter_for` has nothing for an attention, and what to do."""
    name = qualified_name(type(module))
    if name in LINEAR_ALREADY:
        return f"{name} is linear already: {LINEAR_ALREADY[name]}"
    if name in _ADAPTERS_BY_NAME and _of_text(module):
        return "of a text model"
    fits = adapter_on_request(module) is not None
    by_name = "; one that may fit is used where where= names the layer" if fits else ""
    if tokens := window_of(module):
        return (
            f"{name} attends within windows of {tokens} tokens, whatever the image: linear "
            f"attention gains nothing{by_name}"
        )
    return f"no adapter for {name}{by_name}"


def window_of(module: nn.Module) -> int:
    """Tokens that an attention of windows sees at a time; 0 where it says nothing of windows."""
    for name in ("window_area", "window_size", "ws"):
        said = getattr(module, name, None)
        sides = said if isinstance(said, tuple | list) else (said, said)
        if said and all(isinstance(side, int) for side in sides):
            return said if name == "window_area" else math.prod(sides)
    return 0


def supported_hosts() -> list[str]:
    """Qualified names of the attention classes that can be converted, for error messages."""
    by_class = {qualified_name(kind) for kind in _ADAPTERS if kind is not _ADAPTERS[kind]}
    return sorted(by_class | _ADAPTERS_BY_NAME.keys())


def qualified_name(kind: type) -> str:
    """Module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _of_text(module: nn.Module) -> bool:
    """Whether an attention of Hugging Face transformers belongs to a model of text."""
    kind = getattr(getattr(module, "config", None), "model_type", "")
    return isinstance(kind, str) and "text" in kind
