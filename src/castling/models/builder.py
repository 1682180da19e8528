"""From a name to a model: ``timm:NAME`` (or ``NAME``) or ``HEAD/BACKBONE``, an attention put in.

What a model takes is read off its class, so that nothing is tried and taken back: ``img_size`` goes
to the models that have one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
from timm.models import is_model, model_entrypoint, parse_model_name
from torch import nn

from castling.attention import attention_config
from castling.models.arguments import Arguments, arguments_of, takes_image_size
from castling.models.dense_builder import build_dense
from castling.models.names import split_name, timm_name
from castling.models.published import NoPublishedWeightsError, no_weights, published_weights
from castling.surgery import Attention, Where, linearize_
from castling.utils.text import did_you_mean

#: Arguments that timm takes for every model, whatever its class.
_OF_TIMM = frozenset(
    {
        *("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"),
        *("features_only", "out_indices", "feature_cls", "scriptable", "exportable"),
    }
)


def build_model(
    name: str,
    kwargs: dict[str, Any],
    attention: str | dict[str, Any] | None = None,
    where: list[str] | dict[str, Any] | None = None,
    *,
    head: Mapping[str, Any] | None = None,
    image_size: tuple[int, int] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """:func:`create_model` from the values of a recipe or a card.

    Args:
        name: a name in timm's registry, ours included, with or without ``timm:`` before it; or
            ``HEAD/BACKBONE``.
        kwargs: further keyword arguments of the model, of the backbone where there is a head.
        attention: name, or dictionary of name and options; None keeps what the model has.
        where: names of attention layers to convert, or a plan; None means all.
        head: options of the head of a dense model.
        image_size: (height, width), passed as ``img_size`` to models that take one.
        pretrained: load timm's weights (needs the network).

    Raises:
        ValueError: no such model, head or attention, or it does not take an argument.
        NoPublishedWeightsError: pretrained weights can be neither found nor downloaded.
    """
    dense, _ = split_name(name)
    registered = timm_name(name)
    kwargs = dict(kwargs)
    taken = arguments_of(model_entrypoint(registered.split(".")[0]))
    config = None if attention is None else attention_config(attention)
    if image_size is not None and takes_image_size(registered):
        height, width = image_size
        kwargs.setdefault("img_size", height if height == width else image_size)
    if pretrained and (overlay := published_weights(registered)):
        kwargs.setdefault("pretrained_cfg_overlay", overlay)
    try:
        return create_model(
            f"{dense}/{registered}" if dense else registered,
            pretrained,
            attention=config,
            where=None if config is None else where,
            head=head,
            **kwargs,
        )
    except OSError as error:
        if not pretrained:
            raise
        raise NoPublishedWeightsError(no_weights(registered, str(error))) from error
    except TypeError as error:
        if where is not None and "attention" in taken.names:
            kwargs["where"] = where  # it went into the model too
        raise ValueError(_refusal(registered, kwargs, taken) or f"{name}: {error}") from error


def create_model(
    model_name: str,
    pretrained: bool = False,
    *,
    attention: Attention | None = None,
    where: Where | None = None,
    head: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """``timm.create_model``, with an attention put into any model that can be converted.

    Args:
        model_name: a name in timm's registry, ours included; or ``HEAD/BACKBONE`` for a dense model
            (``castling.models.dense.list_heads()``) on any of them.
        pretrained: load the weights that timm knows of (needs the network), of a dense model into
            its backbone.
        attention: a configuration, a registered name, or a dictionary with ``name``; None keeps
            what the model has.
        where: which layers, as for :func:`castling.linearize_`; None means all. Those of a dense
            model are named as in it, such as ``backbone.body.model.blocks.0.attn``.
        head: options of a dense model's head.
        **kwargs: of ``timm.create_model``, and of the model or backbone; ``num_classes`` is the
            head's.

    Raises:
        ValueError: the head, one of its options or the attention is unknown, or the model has no
            attention that can be replaced, or the backbone lacks a feature map that the head needs.
        TypeError: the model does not take an argument.

    Example:
        >>> model = create_model("retinanet/cas_vit_xs", num_classes=80)
    """
    dense, backbone = split_name(model_name)
    if dense:
        return build_dense(
            dense,
            backbone,
            kwargs,
            head,
            attention=attention,
            where=where,
            pretrained=pretrained,
        )
    if head:
        raise ValueError(
            f"{model_name} has no head that takes options (head={dict(head)}): dense models are "
            "named HEAD/BACKBONE"
        )
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
