"""``linearize_``: replace the attention of a whole model, or of chosen layers, in place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from torch import nn

from castling.attention import AttentionConfig, attention_config, kernel_class
from castling.surgery.hosts import HostAttention, Place, adapter_on_request, why_left
from castling.surgery.linearize_report import (
    LinearizeReport,
    grouped,
    no_attention,
    unknown_attentions,
)
from castling.surgery.plan import Plan
from castling.surgery.selection import (
    Attention,
    Selection,
    Where,
    choose,
    convertible,
    owner_of,
    read_plan,
)
from castling.surgery.self_description import describe_itself
from castling.surgery.transformers_save import is_of_transformers, save_as_converted

_logger = logging.getLogger(__name__)


def linearize_(
    model: nn.Module, attention: Attention, where: Where | None = None
) -> LinearizeReport:
    """Replace attentions of a timm model, in place; projections and all other weights are kept.

    Args:
        model: a timm model of a supported family (plain ViTs, EVA-02 and DINOv3 with rotary
            positions, LeViT, MViTv2), also wrapped by ``features_only=True`` or inside a larger
            module. Already converted layers are converted again.
        attention: the new attention: a configuration, a registered name, or a dictionary.
        where: None for all layers; a name, a shell pattern or the name of an enclosing module
            (``"stages.0"``), or several of them; a predicate ``(name, module) -> bool``; a mapping
            from such names to an attention, None leaving the layer as it is; a whole name may be
            that of any module that calls ``scaled_dot_product_attention``; or what
            ``castling.plan`` measured: the plan, or the path of its file (``….json``). A plan may
            leave every layer as it is.

    Returns:
        A list of the names of the replaced layers, in order of execution. Its ``replaced`` says
        what stood there, its ``left`` which layers stay as they were and why: those that ``where``
        does not choose, and attentions of kinds that cannot be replaced, which are also logged.

    Raises:
        ValueError: the model holds no attention that can be replaced, or ``where`` matches none, or
            a plan is of another model, or the attention needs the grid where a layer cannot know
            it. The model is then unchanged.

    Example:
        >>> model = timm.create_model("vit_base_patch16_224")
        >>> castling.linearize_(model, castling.LinearAngular(), where="blocks.[0-5].attn")
    """
    where = read_plan(where)
    if isinstance(where, Iterator):
        where = list(where)
    layers = convertible(model, where)
    if not layers:
        raise ValueError(no_attention(model))
    chosen = _configs(layers, attention, where)
    if "" in chosen:
        raise ValueError("an attention cannot replace itself: pass the module that holds it")
    owner = owner_of(model)
    places: dict[str, Place] = {}
    for adapter in dict.fromkeys(adapter_on_request(layers[name]) for name in chosen):
        assert adapter is not None
        places.update(adapter.places(owner))
    # Build all before placing any: a refused layer must not leave a half-converted model.
    replacements = {
        id(layers[name]): _converted(name, layers[name], config, places.get(name, Place()))
        for name, config in chosen.items()
    }
    # A module shared by several parents is replaced in all of them.
    for name, module in list(owner.named_modules(remove_duplicate=False)):
        if id(module) in replacements:
            parent, _, child = name.rpartition(".")
            setattr(owner.get_submodule(parent), child, replacements[id(module)])
    describe_itself(owner)
    for part in owner.modules():
        if is_of_transformers(part) and any(isinstance(m, HostAttention) for m in part.modules()):
            save_as_converted(part)
    return _reported(model, layers, chosen)


def _reported(
    model: nn.Module, layers: Mapping[str, nn.Module], chosen: Mapping[str, AttentionConfig]
) -> LinearizeReport:
    """The report, logged; ``layers`` are those before the conversion."""
    replaced = {
        name: host.config.name if isinstance(host := layers[name], HostAttention) else "softmax"
        for name in chosen
    }
    left = dict.fromkeys((name for name in layers if name not in chosen), "not chosen by where")
    owner = owner_of(model)
    unknown = {name: why_left(owner.get_submodule(name)) for name in unknown_attentions(owner)}
    report = LinearizeReport(replaced, left | unknown)
    again = {name: was for name, was in replaced.items() if was != "softmax"}
    if again:
        _logger.info("converted again, with what stood there: %s", grouped(again))
    if unknown:
        _logger.warning(
            "%s keeps attentions that cannot be replaced: %s",
            type(model).__name__,
            grouped(unknown),
        )
    return report


def _configs(
    layers: Mapping[str, nn.Module], attention: Attention, where: Selection | Plan | None
) -> dict[str, AttentionConfig]:
    """Layer name -> its new configuration; only a plan may choose none."""
    config = attention_config(attention)
    if isinstance(where, Plan):
        where.require_fits(layers, config)
        return dict.fromkeys(where.linear, config)
    return {
        name: config if isinstance(choice, bool) else attention_config(choice)
        for name, choice in choose(layers, where).items()
    }


def _converted(name: str, host: nn.Module, config: AttentionConfig, place: Place) -> HostAttention:
    adapter = adapter_on_request(host)
    assert adapter is not None
    if isinstance(host, HostAttention) and host.place.geometry is not None:
        place = host.place
    if place.no_grid and (config.local == "grid2d" or kernel_class(config).needs_grid):
        advice = 'local="none" or "token1d"' if config.local == "grid2d" else "another attention"
        raise ValueError(
            f"{name} cannot know the grid of its tokens ({place.no_grid}): use {advice}"
        )
    parameter = next(host.parameters())
    new = cast("Callable[..., HostAttention]", adapter)(host, config, place)
    new.check_bias()
    for part in (new.kernel, new.dconv, new.auxiliary):  # the host's own parts stay as they are
        if part is not None:
            part.to(device=parameter.device, dtype=parameter.dtype)
    return new.train(host.training)
