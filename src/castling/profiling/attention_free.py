"""The attention inside a whole model: its number of tokens, and the model without it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from castling.attention import AttentionCore, AttentionInputs, Kernel, Softmax
from castling.attention.convolutional_additive import AdditiveTokenMixer
from castling.attention.image_mixer import ImageMixer
from castling.surgery import convertible, linearize_


class _PassValues(Kernel):
    """No attention: the value at each query."""

    def forward(self, inputs: AttentionInputs) -> Tensor:
        """See :class:`Kernel`."""
        return inputs.value if inputs.query_value is None else inputs.query_value


class _PassMixer(nn.Module):
    """CAS-ViT's token mixer reduced to its projections of v: no gates, no Γ, no product."""

    def __init__(self, mixer: AdditiveTokenMixer) -> None:
        super().__init__()
        self.qkv, self.proj = mixer.qkv, mixer.proj

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, C, h, w)."""
        return self.proj(self.qkv(x).chunk(3, dim=1)[2])


def is_ours(module: nn.Module) -> bool:
    """Whether ``module`` is an attention of this package, deleted ones included."""
    return isinstance(module, AttentionCore | ImageMixer | _PassMixer)


def without_attention(model: nn.Module) -> nn.Module:
    """Delete every attention core of ``model``, in place; q, k, v and output projections stay.

    Returns:
        the model.

    Raises:
        ValueError: the model has no attention of a known class.
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


def count_tokens(model: nn.Module, images: Tensor) -> int | None:
    """Largest number of tokens that an attention of ``model`` gets in a forward pass.

    Args:
        model: in evaluation mode.
        images: (B, C, H, W).

    Returns:
        None for a model without attentions of this package or of a convertible host.
    """
    found: list[int] = []

    def note(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0]
        found.append(x.shape[1] if x.dim() == 3 else math.prod(x.shape[-2:]))

    layers = {id(m): m for m in model.modules() if is_ours(m)}
    layers |= {id(m): m for m in convertible(model).values()}
    handles = [layer.register_forward_pre_hook(note) for layer in layers.values()]
    try:
        with torch.no_grad():
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return max(found, default=None)
