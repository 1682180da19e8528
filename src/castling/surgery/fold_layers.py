"""Putting a BatchNorm in evaluation mode into the linear layer beside it, exactly.

In evaluation BatchNorm is y = s·x + t per channel, s = γ/√(σ² + ε), t = β − μ·s. Everything is
computed in float64 and rounded once. Layers whose weights something recomputes on every call
(hooks, pruning, parametrisations) are left alone: a folded weight would be lost.
"""

from __future__ import annotations

import torch
from timm.layers import BatchNormAct2d, Conv2dSame
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from castling.utils.plain import is_plain

# Exact classes: a subclass may standardise or re-parametrise its weight on every call.
LINEAR_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv2dSame)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, BatchNormAct2d)


def can_follow(layer: nn.Module | None, norm: nn.Module | None) -> bool:
    """Whether ``norm`` can be folded into ``layer``, whose output is its only input."""
    return _is_norm(norm) and is_plain(layer, *LINEAR_LAYERS)


def can_precede(norm: nn.Module | None, layer: nn.Module | None) -> bool:
    """Whether ``norm`` can be folded into ``layer`` behind it: no zero padding, no groups."""
    if not _is_norm(norm) or isinstance(norm, BatchNormAct2d):
        return False
    if isinstance(layer, nn.Conv2d):
        # Padding adds zeros behind the norm, which its shift would not reach.
        return is_plain(layer, nn.Conv2d) and layer.groups == 1 and layer.padding in ((0, 0), 0)
    return is_plain(layer, nn.Linear)


def _is_norm(norm: nn.Module | None) -> bool:
    return is_plain(norm, *_NORMS) and norm.running_mean is not None  # type: ignore[union-attr]


def absorb_following(layer: nn.Module, norm: nn.Module) -> nn.Module:
    """Put the norm behind ``layer`` into it.

    Args:
        layer: linear layer or convolution; its parameters are replaced, not written to.
        norm: BatchNorm over the layer's outputs.

    Returns:
        what stands in the norm's place: the activation of a norm that has one, else identity.
    """
    scale, shift = scale_and_shift(norm)
    weight, bias = _double(layer)
    wide = scale.reshape(-1, *[1] * (weight.dim() - 1))
    _replace(layer, weight * wide, bias * scale + shift)
    return norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity().eval()


def absorb_preceding(norm: nn.Module, *layers: nn.Module) -> nn.Module:
    """Put the norm in front of ``layers``, all fed by it, into each: W(s·x + t) + b.

    Returns:
        what stands in the norm's place: identity.
    """
    scale, shift = scale_and_shift(norm)
    for layer in layers:
        weight, bias = _double(layer)
        matrix = weight.flatten(2).sum(2) if weight.dim() > 2 else weight
        wide = scale.reshape(1, -1, *[1] * (weight.dim() - 2))
        _replace(layer, weight * wide, bias + matrix @ shift)
    return nn.Identity().eval()


def average(first: nn.Linear, second: nn.Linear) -> None:
    """Make ``first`` give the mean of both layers' outputs."""
    weight, bias = _double(first)
    other_weight, other_bias = _double(second)
    _replace(first, (weight + other_weight) / 2, (bias + other_bias) / 2)


def scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(s, t) of a BatchNorm in evaluation, each (C,) in float64."""
    assert isinstance(norm, _BatchNorm)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.detach().double()
    shift = -norm.running_mean.double() * scale
    if norm.bias is not None:
        shift = shift + norm.bias.detach().double()
    return scale, shift


def _double(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias in float64; a missing bias is zero."""
    weight: Tensor = layer.weight.detach().double()  # type: ignore[operator]
    bias = layer.bias
    if bias is None:
        return weight, weight.new_zeros(weight.shape[0])
    return weight, bias.detach().double()  # type: ignore[operator]


def _replace(layer: nn.Module, weight: Tensor, bias: Tensor) -> None:
    # New parameters, so that the old ones can be restored.
    old: nn.Parameter = layer.weight  # type: ignore[assignment]
    layer.weight = nn.Parameter(weight.to(old.dtype), requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias.to(old.dtype), requires_grad=old.requires_grad)
