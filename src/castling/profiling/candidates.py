"""Which models are measured, and what each is compared with.

A model's **host** is the same network with softmax attention; its **cap** is the same network with
the attention core deleted, projections kept: no attention can be faster than that.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

from castling.attention import Softmax, attention_config, auxiliaries
from castling.attention.base import AttentionCore, Kernel
from castling.attention.config import AttentionConfig
from castling.attention.convolutional_additive import AdditiveTokenMixer
from castling.models.saved import build_model
from castling.surgery import convertible, linearize_, strip_

Size = tuple[int, int]

_OWN_HOSTS = {"castling_vit_base_patch16": "vit_base_patch16_224"}


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    Attributes:
        name: as it stands in tables and legends.
        build: gives the model for images of (height, width).
        hosts: names of candidates with softmax that it is compared with, the fastest of them.
        cap: name of the candidate that is this one without its attention core; empty for none.
    """

    name: str
    build: Callable[[Size], nn.Module]
    hosts: tuple[str, ...] = ()
    cap: str = ""


def read_attention(text: str) -> AttentionConfig:
    """``NAME`` or ``NAME:option=value,option=value``, such as ``linear_angular:local=none``.

    Raises:
        ValueError: the name or an option is unknown, or a value has no meaning.
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
    cap: str = "",
) -> Candidate:
    """A named model as in use: auxiliary branches cast away.

    Args:
        name: timm name, ours included.
        attention: put into the model, as :func:`read_attention` takes it; None keeps its own.
        kwargs: further arguments of the model.
        hosts: names of what it is compared with.
        cap: name of its cap.
    """
    config = None if attention is None else read_attention(attention)
    values = None if config is None else {"name": config.name, **dataclasses.asdict(config)}

    def build(size: Size) -> nn.Module:
        model = build_model(name, dict(kwargs or {}), values, image_size=size)
        if auxiliaries(model):
            strip_(model)
        return model

    label = name if attention is None else f"{name} + {attention}"
    return Candidate(label, build, tuple(hosts), cap)


def choose_candidates(models: Sequence[str], attentions: Sequence[str] = ()) -> list[Candidate]:
    """Models with what they are compared with.

    Args:
        models: timm names. Of ours, the softmax twin is measured too; a host with softmax stands
            for itself.
        attentions: put into each of ``models``; empty measures them as they are.

    Raises:
        ValueError: an attention is unknown.
    """
    found: dict[str, Candidate] = {}

    def add(candidate: Candidate) -> str:
        found.setdefault(candidate.name, candidate)
        return candidate.name

    for name in models:
        hosts = [add(model_candidate(host, attention)) for host, attention in _hosts(name)]
        wanted = list(attentions)
        if not attentions and name not in hosts:
            add(_with_cap(model_candidate(name, hosts=hosts), add))
        for attention in wanted:
            add(_with_cap(model_candidate(name, attention, hosts=hosts), add))
    return list(found.values())


def _with_cap(candidate: Candidate, add: Callable[[Candidate], str]) -> Candidate:
    name = candidate.name.partition(" + ")[0] + " without attention"
    cap = Candidate(name, lambda size: without_attention(candidate.build(size)))
    return dataclasses.replace(candidate, cap=add(cap))


def _hosts(name: str) -> list[tuple[str, str | None]]:
    """The softmax twins of a model: (timm name, attention put in).

    LeViT and MViTv2 write their scores out in timm: there the twin with PyTorch's fused kernel is
    measured as well, and the faster one counts.
    """
    host = _OWN_HOSTS.get(name, name.removeprefix("castling_"))
    own = timm.is_model(name) and timm.models.model_entrypoint(name).__module__.startswith(
        "castling."
    )
    if own and (host == name or not timm.is_model(host)) and name != "deit_pico":
        return [(name, "softmax")]
    fused = any(part in host for part in ("vit_", "deit", "eva")) and "mvit" not in host
    return [(host, None)] if fused and "levit" not in host else [(host, None), (host, "softmax")]


class _PassValues(Kernel):
    """No attention: the value at each query."""

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        query_value: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """See :class:`Kernel`."""
        return value if query_value is None else query_value


class _PassMixer(nn.Module):
    """CAS-ViT's token mixer without gates, Γ and product: its projections of v alone."""

    def __init__(self, mixer: AdditiveTokenMixer) -> None:
        super().__init__()
        self.qkv, self.proj = mixer.qkv, mixer.proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.proj(self.qkv(x).chunk(3, dim=1)[2])


def without_attention(model: nn.Module) -> nn.Module:
    """Delete every attention core of ``model``, in place: q, k, v and output projections stay.

    Returns:
        the model.

    Raises:
        ValueError: no attention was found.
    """
    if convertible(model) and not any(isinstance(m, AttentionCore) for m in model.modules()):
        linearize_(model, Softmax())
    count = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, AdditiveTokenMixer):
                setattr(parent, name, _PassMixer(child))
                count += 1
    for core in model.modules():
        if isinstance(core, AttentionCore):
            core.strip()
            core.kernel = _PassValues(core.config, core.num_heads, core.head_dim, core.value_dim)
            core.dconv = None
            count += 1
    if not count:
        raise ValueError(f"{type(model).__name__} holds no attention that could be deleted")
    return model


def count_tokens(module: nn.Module, images: Tensor) -> int | None:
    """Most tokens that any attention inside meets in a forward pass; None where there is none."""
    found: list[int] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].dim() in (3, 4):
            x = inputs[0]
            found.append(x.shape[1] if x.dim() == 3 else math.prod(x.shape[-2:]))

    handles = [
        inner.register_forward_pre_hook(note)
        for inner in module.modules()
        if isinstance(inner, AttentionCore) or _looks_like_attention(inner)
    ]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for handle in handles:
            handle.remove()
    return max(found, default=None)


def _looks_like_attention(module: nn.Module) -> bool:
    name = type(module).__name__.lower()
    return any(part in name for part in ("attention", "attn", "mixer", "litemla"))
