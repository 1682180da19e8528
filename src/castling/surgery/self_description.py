"""What a converted model says of itself to timm's savers (``save_for_hf``, ``push_to_hf_hub``).

They write the name of an architecture (``pretrained_cfg``) and arguments (``_model_args``), from
which ``timm.create_model`` builds the model anew. Those of the host would build softmax attention,
into which the weights of many linear attentions fit. So a converted model calls itself
:data:`ARCHITECTURE`, a model function whose arguments are the host and the attention of its layers,
as they are at that moment. Without castling, or with a timm that writes no arguments, the model is
refused when it is opened instead of being another one.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from castling.attention import AttentionConfig, TokenMixer, auxiliaries, config_to_dict
from castling.surgery.hosts import HostAttention, adapter_for
from castling.surgery.hosts.functional import FunctionalAttention
from castling.surgery.selection import attention_layers

#: The model function in ``castling.models.converted``.
ARCHITECTURE = "converted_by_castling"


def describe_itself(model: nn.Module) -> None:
    """Make ``model`` bring its description up to date whenever its state is read."""
    if _bring_up_to_date not in model._state_dict_pre_hooks.values():
        model.register_state_dict_pre_hook(_bring_up_to_date)


def architecture_of(model: nn.Module) -> str:
    """The name in timm's registry of a model, of its host where it is converted; "" without."""
    name: str = (getattr(model, "pretrained_cfg", None) or {}).get("architecture") or ""
    return _arguments(model).get("host", "") if name == ARCHITECTURE else name


def _arguments(model: nn.Module) -> dict[str, Any]:
    return dict(getattr(model, "_model_args", None) or {})


def _bring_up_to_date(model: nn.Module, prefix: str, keep_vars: bool) -> None:
    described: Any = getattr(model, "pretrained_cfg", None)
    host, arguments = architecture_of(model), _arguments(model)
    layers = {n: m for n, m in attention_layers(model).items() if isinstance(m, TokenMixer)}
    if not isinstance(described, dict) or not host or not layers:
        return
    inside = not any(isinstance(layer, HostAttention) for layer in layers.values())
    if inside and arguments.get("attention") is None and not auxiliaries(model):
        return  # an architecture of ours with its own attention
    arguments |= {"host": host, **attention_arguments(model, layers)}
    model._model_args = arguments  # type: ignore[assignment]
    # A new dictionary: ``default_cfg`` keeps the host's.
    model.pretrained_cfg = described | {"architecture": ARCHITECTURE}  # type: ignore[assignment]


def attention_arguments(model: nn.Module, layers: dict[str, TokenMixer]) -> dict[str, Any]:
    """``attention``, ``where``, ``switched`` and ``progress`` as the model function takes them."""
    configs: dict[str, AttentionConfig] = {name: layer.config for name, layer in layers.items()}
    first = next(iter(configs.values()))
    # What was converted because it was named must be named again.
    named = any(
        isinstance(layer, FunctionalAttention) and adapter_for(layer.inner) is None
        for layer in layers.values()
    )
    everywhere = len(layers) == len(attention_layers(model)) and all(
        config == first for config in configs.values()
    )
    everywhere &= not named
    branches = list(auxiliaries(model).values())
    return {
        "attention": config_to_dict(first),
        "where": None if everywhere else {n: config_to_dict(c) for n, c in configs.items()},
        "switched": not branches and any(map(_lost_biases, layers.values())),
        "progress": branches[0].progress if branches else 0.0,
    }


def _lost_biases(layer: TokenMixer) -> bool:
    return isinstance(layer, HostAttention) and bool(layer.lost_biases())
