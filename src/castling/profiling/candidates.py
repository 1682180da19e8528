"""The models that ``castling bench models`` measures, and what each is compared with.

A model's **softmax hosts** are the same network with softmax attention. Its **attention-free
bound** is the same network with the attention core deleted and the projections kept: no attention
can make the model faster than that.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import nn

from castling.attention import attention_config, auxiliaries
from castling.attention.config import AttentionConfig
from castling.models.builder import build_model
from castling.models.names import split_name
from castling.profiling.attention_free import is_ours, without_attention
from castling.surgery import convertible, strip_

Size = tuple[int, int]

#: Host in timm of our models whose name is not ``castling_HOST``.
_TIMM_HOSTS = {"castling_vit_base_patch16": "vit_base_patch16_224"}


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    Attributes:
        name: in tables and legends.
        build: makes the model for images of (height, width).
        hosts: names of the softmax candidates it is compared with; the fastest of them counts.
        bound: name of the candidate that is this model without its attention core; empty for none.
    """

    name: str
    build: Callable[[Size], nn.Module]
    hosts: tuple[str, ...] = ()
    bound: str = ""


def read_attention(text: str) -> AttentionConfig:
    """``NAME`` or ``NAME:option=value,option=value``, such as ``linear_angular:local=none``.

    Raises:
        ValueError: the name or an option is unknown, or a value is not allowed.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in rest.split(",") if rest else ():
        option, equals, value = part.partition("=")
        if not equals or option == "name":
            raise ValueError(
                f"{text!r} is not an attention: write NAME:option=value,option=value, such as "
                "linear_angular:local=token1d"
            )
        try:
            options[option] = json.loads(value)
        except json.JSONDecodeError:
            options[option] = value
    return attention_config({"name": name, **options})


def model_candidate(
    name: str,
    attention: str | None = None,
    *,
    kwargs: dict[str, Any] | None = None,
    hosts: Sequence[str] = (),
    bound: str = "",
) -> Candidate:
    """A model as used for inference: auxiliary branches are removed.

    Args:
        name: timm name, or ``HEAD/BACKBONE``.
        attention: attention to convert it to, as for :func:`read_attention`; None keeps its own.
        kwargs: further arguments of the model.
        hosts: names of the softmax candidates it is compared with.
        bound: name of its attention-free bound.
    """
    config = None if attention is None else read_attention(attention)
    values = None if config is None else {"name": config.name, **dataclasses.asdict(config)}

    def build(size: Size) -> nn.Module:
        model = build_model(name, dict(kwargs or {}), values, image_size=size)
        if auxiliaries(model):
            strip_(model)
        return model

    label = name if attention is None else f"{name} + {attention}"
    return Candidate(label, build, tuple(hosts), bound)


def choose_candidates(models: Sequence[str], attentions: Sequence[str] = ()) -> list[Candidate]:
    """Models together with their softmax hosts and attention-free bounds.

    Args:
        models: timm names, or ``HEAD/BACKBONE``. A model with softmax attention is its own host.
        attentions: put into each of ``models``; empty measures the models as they are.

    Raises:
        ValueError: an attention is unknown.
    """
    found: dict[str, Candidate] = {}

    def add(candidate: Candidate) -> str:
        found.setdefault(candidate.name, candidate)
        return candidate.name

    for name in models:
        hosts = [add(model_candidate(host, attention)) for host, attention in _hosts(name)]
        if not attentions and name not in hosts:
            add(_with_bound(model_candidate(name, hosts=hosts), add))
        for attention in attentions:
            add(_with_bound(model_candidate(name, attention, hosts=hosts), add))
    return list(found.values())


def _with_bound(candidate: Candidate, add: Callable[[Candidate], str]) -> Candidate:
    name = candidate.name.partition(" + ")[0] + " without attention"
    bound = Candidate(name, lambda size: without_attention(candidate.build(size)))
    return dataclasses.replace(candidate, bound=add(bound))


def _hosts(name: str) -> list[tuple[str, str | None]]:
    """The softmax hosts of a model: (name, attention to put in).

    Those of a dense model are its head on the hosts of its backbone. Where timm computes the score
    matrix explicitly (LeViT, MViTv2), the host with PyTorch's fused kernel is measured as well, and
    the faster of the two counts.
    """
    head, backbone = split_name(name)
    if head:
        return [(f"{head}/{host}", attention) for host, attention in _hosts(backbone)]
    host = _TIMM_HOSTS.get(name, name.removeprefix("castling_"))
    host = host if timm.is_model(host) else name
    if not timm.is_model(host):  # building it later says what timm knows instead
        return [(host, None)]
    with torch.device("meta"):
        model = timm.create_model(host)
    if any(is_ours(module) for module in model.modules()):
        return [(name, "softmax")]
    # timm sets fused_attn on attentions that call scaled_dot_product_attention.
    fused = all(getattr(layer, "fused_attn", False) for layer in convertible(model).values())
    return [(host, None)] if fused else [(host, None), (host, "softmax")]
