"""What can be measured: named models and single attentions, built alike at every size."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from castling.attention import Attention, attention_config, auxiliaries
from castling.attention.base import AttentionCore
from castling.attention.config import AttentionConfig
from castling.models.saved import build_model
from castling.surgery import strip_

Size = tuple[int, int]


@dataclass(frozen=True)
class Subject:
    """Something to measure.

    Attributes:
        name: as it stands in tables and legends.
        kind: ``"model"`` takes images, sizes are pixels; ``"attention"`` takes a grid of
            tokens, sizes are its rows and columns.
        build: gives the module for a size.
        channels: of its input.
    """

    name: str
    kind: Literal["model", "attention"]
    build: Callable[[Size], nn.Module]
    channels: int = 3


class GridAttention(nn.Module):
    """One token mixer, fed with (B, C, h, w) as a model is fed with images."""

    def __init__(self, dim: int, num_heads: int, attention: AttentionConfig) -> None:
        super().__init__()
        self.attention = Attention(dim, num_heads, attention)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, C, h, w) to (B, h·w, C)."""
        size = grid.shape[-2], grid.shape[-1]
        mixed: Tensor = self.attention(grid.flatten(2).transpose(1, 2), grid=size)
        return mixed


def attention_subject(
    attention: str | AttentionConfig, *, dim: int = 192, num_heads: int = 3
) -> Subject:
    """A single attention as in use: without its auxiliary branch.

    Args:
        attention: a registered name or a configuration.
        dim: channels; the default is DeiT-Tiny's.
        num_heads: heads.

    Raises:
        ValueError: the name is unknown, or ``dim`` is not divisible by ``num_heads``.
    """
    config = dataclasses.replace(attention_config(attention), auxiliary=None)
    if dim % num_heads:
        raise ValueError(f"dim {dim} is not divisible by num_heads {num_heads}")
    return Subject(
        config.name,
        "attention",
        lambda _: GridAttention(dim, num_heads, config),
        channels=dim,
    )


def model_subject(
    name: str, attention: str | None = None, *, kwargs: dict[str, Any] | None = None
) -> Subject:
    """A named model as in use: auxiliary branches cast away.

    Args:
        name: timm name, ours included.
        attention: put into the model; None keeps its own.
        kwargs: further arguments of the model.
    """

    def build(size: Size) -> nn.Module:
        model = build_model(name, kwargs or {}, attention, image_size=size)
        if auxiliaries(model):
            strip_(model)
        return model

    return Subject(name if attention is None else f"{name} + {attention}", "model", build)


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


def choose_subjects(
    models: Sequence[str], attentions: Sequence[str], *, dim: int = 192, num_heads: int = 3
) -> list[Subject]:
    """Subjects for a comparison.

    Args:
        models: timm names; empty measures attentions alone.
        attentions: names; put into each of ``models``, or measured alone. Empty takes the models'
            own, or softmax and the three linear families.
        dim: channels of attentions measured alone.
        num_heads: their heads.
    """
    if models and attentions:
        return [model_subject(name, attention) for name in models for attention in attentions]
    if models:
        return [model_subject(name) for name in models]
    names = attentions or ("softmax", "linear_angular", "quadratic_taylor", "relu_linear")
    return [attention_subject(name, dim=dim, num_heads=num_heads) for name in names]
