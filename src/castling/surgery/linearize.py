"""``linearize_``: replace the attention of a whole model, or of chosen layers, in place."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from timm.models._features import FeatureGetterNet
from torch import nn

from castling.attention import AttentionConfig, ConvolutionalAdditive, attention_config
from castling.surgery import levit, mvitv2, vit  # noqa: F401  # they register their hosts
from castling.surgery.hosts import HostAttention, Place, adapter_for, supported_hosts
from castling.surgery.plan import Plan, load_plan

Attention = str | AttentionConfig | dict[str, Any]
Selection = str | Iterable[str] | Callable[[str, nn.Module], bool] | Mapping[str, Attention | None]
Where = Selection | Plan | os.PathLike[str]


def convertible(model: nn.Module) -> dict[str, nn.Module]:
    """The attentions of ``model`` that can be replaced, by name, in order of execution."""
    return {
        _outward(model, name): module
        for name, module in model.named_modules()
        if adapter_for(module) is not None
    }


def _outward(model: nn.Module, name: str) -> str:
    """The layer's name in the model itself, also where timm wrapped it for its features."""
    return name.removeprefix("model.") if isinstance(model, FeatureGetterNet) else name


def _owner(model: nn.Module) -> nn.Module:
    """The model that outward names count from."""
    return model.model if isinstance(model, FeatureGetterNet) else model


def _choose(
    layers: dict[str, nn.Module], attention: Attention, where: Where | None
) -> dict[str, AttentionConfig]:
    """Layer name -> its new configuration; only a plan may choose none.

    Raises:
        ValueError: a name matches no layer, nothing is chosen, or a plan is of another model.
    """
    config = attention_config(attention)
    if isinstance(where, os.PathLike) or (isinstance(where, str) and where.endswith(".json")):
        where = load_plan(where)
    if isinstance(where, Plan):
        where.require_fits(layers, config)
        return dict.fromkeys(where.linear, config)
    if where is None:
        return dict.fromkeys(layers, config)
    chosen = _by_predicate_or_name(layers, config, where)
    if not chosen:
        raise ValueError(
            f"where selects none of the model's attentions; it has: {', '.join(layers)}"
        )
    return chosen


def _by_predicate_or_name(
    layers: dict[str, nn.Module], config: AttentionConfig, where: Selection
) -> dict[str, AttentionConfig]:
    if callable(where):
        return {name: config for name, module in layers.items() if where(name, module)}
    wanted: Mapping[str, Attention | None]
    if isinstance(where, Mapping):
        wanted = where
    else:
        wanted = dict.fromkeys([where] if isinstance(where, str) else where, config)
    chosen: dict[str, AttentionConfig] = {}
    for pattern, choice in wanted.items():
        names = [name for name in layers if _matches(name, pattern)]
        if not names:
            raise ValueError(
                f"where={pattern!r} matches no attention of this model; it has: {', '.join(layers)}"
            )
        if choice is not None:
            chosen.update(dict.fromkeys(names, attention_config(choice)))
    return chosen


def _matches(name: str, pattern: str) -> bool:
    """A full name, a shell pattern, or the name of a module that holds the attention."""
    return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")


def linearize_(model: nn.Module, attention: Attention, where: Where | None = None) -> list[str]:
    """Replace attentions of a timm model, in place; projections and all other weights are kept.

    Args:
        model: a timm model of a supported family (ViT and DeiT, LeViT, MViTv2), also wrapped by
            ``features_only=True`` or inside a larger module. Already converted layers are converted
            again.
        attention: the new attention: a configuration, a registered name, or a dictionary.
        where: None for all layers; a name, a shell pattern or the name of an enclosing module
            (``"stages.0"``), or several of them; a predicate ``(name, module) -> bool``; a mapping
            from such names to an attention, None leaving the layer as it is; or what
            ``castling.plan`` measured: the plan, or the path of its file (``….json``). A plan may
            leave every layer as it is.

    Returns:
        Names of the replaced layers, in order of execution.

    Raises:
        ValueError: the model holds no attention that can be replaced, or ``where`` matches none, or
            a plan is of another model, or the attention needs the grid where a layer cannot know
            it. The model is then unchanged.

    Example:
        >>> model = timm.create_model("vit_base_patch16_224")
        >>> castling.linearize_(model, castling.LinearAngular(), where="blocks.[0-5].attn")
    """
    layers = convertible(model)
    if not layers:
        raise ValueError(
            f"{type(model).__name__} holds no attention that can be replaced; supported: "
            f"{', '.join(supported_hosts())}"
        )
    chosen = _choose(layers, attention, where)
    if "" in chosen:
        raise ValueError("an attention cannot replace itself: pass the module that holds it")
    owner = _owner(model)
    places: dict[str, Place] = {}
    for adapter in dict.fromkeys(adapter_for(layers[name]) for name in chosen):
        assert adapter is not None
        places.update(adapter.places(owner))
    # Build all before placing any: a refused layer must not leave a half-converted model.
    replacements = {
        id(layers[name]): _converted(name, layers[name], config, places.get(name, Place()))
        for name, config in chosen.items()
    }
    # Modules that stand at several places, weights tied, are replaced at all of them.
    for name, module in list(owner.named_modules(remove_duplicate=False)):
        if id(module) in replacements:
            parent, _, child = name.rpartition(".")
            setattr(owner.get_submodule(parent), child, replacements[id(module)])
    return list(chosen)


def _converted(name: str, host: nn.Module, config: AttentionConfig, place: Place) -> HostAttention:
    adapter = adapter_for(host)
    assert adapter is not None
    if isinstance(host, HostAttention) and host.place.geometry is not None:
        place = host.place
    if place.no_grid and (config.local == "grid2d" or isinstance(config, ConvolutionalAdditive)):
        advice = 'local="none" or "token1d"' if config.local == "grid2d" else "another attention"
        raise ValueError(
            f"{name} cannot know the grid of its tokens ({place.no_grid}): use {advice}"
        )
    parameter = next(host.parameters())
    new: HostAttention = adapter(host, config, place)  # type: ignore[call-arg]
    new.check_bias()
    for part in (new.kernel, new.dconv, new.auxiliary):  # the host's own parts stay as they are
        if part is not None:
            part.to(device=parameter.device, dtype=parameter.dtype)
    return new.train(host.training)
