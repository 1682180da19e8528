"""A folded CAS-ViT block for inference, in as few passes over the image as possible.

    x₁  = x + W₂ gelu(D(W₁ x))                                    local integration
    q, k, v = W_qkv x₁
    Φ(q) = q ⊙ g ⊙ c,  g = σ(w·relu(D_q q)) per position,  c = σ(C_q·mean(q ⊙ g)) per channel
    x₂  = x₁ + P(Γ(Φ_q(q) + Φ_k(k)) ⊙ v)
    out = x₂ + V₂ gelu(V₁ x₂)

D, P, Γ are depthwise 3×3; all BatchNorms are folded into the weights (arXiv 2408.03703, §3).

- ``native``: everything between two products stays in the processor's cache: twelve passes over the
  image instead of about forty with separate operators.
- ``naive``: basic operators; gates are multiplied with each other before the image, and
  mean(q ⊙ g) is a matrix-vector product, so q ⊙ g is never stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._decomp import register_decomposition
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from castling.ops import native
from castling.ops.backends import select_backend
from castling.ops.guards import differentiating
from castling.ops.native.arguments import WITH_LOCAL
from castling.ops.operators import library


class ConvolutionWeights(NamedTuple):
    """Weight (out, in / groups, k, k) and bias (out,) of a convolution."""

    weight: Tensor
    bias: Tensor


class SpatialChannelWeights(NamedTuple):
    """Φ's: depthwise (C, 1, 3, 3) and its bias, positions (1, C, 1, 1), channels (C, C, 1, 1)."""

    depthwise: Tensor
    bias: Tensor
    position: Tensor
    channel: Tensor


class AdditiveBlockWeights(NamedTuple):
    """A folded block's weights, C channels, H hidden ones.

    Attributes:
        local: the local integration's: first (C, C, 1, 1), depthwise (C, 1, 3, 3), last
            (C, C, 1, 1), each with its bias; empty for none.
        qkv: (3·C, C, 1, 1).
        query: gates of the queries.
        key: gates of the keys.
        gamma: Γ, (C, 1, 3, 3).
        project: P, (C, 1, 3, 3).
        up: (H, C, 1, 1).
        down: (C, H, 1, 1).
    """

    local: tuple[ConvolutionWeights, ...]
    qkv: ConvolutionWeights
    query: SpatialChannelWeights
    key: SpatialChannelWeights
    gamma: ConvolutionWeights
    project: ConvolutionWeights
    up: ConvolutionWeights
    down: ConvolutionWeights

    def flat(self) -> list[Tensor]:
        """All tensors, in the order of the operator's argument."""
        parts: list[Tensor] = [tensor for part in self.local for tensor in part]
        for part in self[1:]:
            parts.extend(part)
        return parts

    @classmethod
    def from_flat(cls, tensors: Sequence[Tensor]) -> AdditiveBlockWeights:
        """The inverse of :meth:`flat`."""
        rest = iter(tensors)

        def pair() -> ConvolutionWeights:
            return ConvolutionWeights(next(rest), next(rest))

        def gates() -> SpatialChannelWeights:
            return SpatialChannelWeights(next(rest), next(rest), next(rest), next(rest))

        local = tuple(pair() for _ in range(3)) if len(tensors) == WITH_LOCAL else ()
        return cls(local, pair(), gates(), gates(), pair(), pair(), pair(), pair())


def can_take(x: Tensor, weights: Sequence[Tensor]) -> bool:
    """Whether :func:`additive_block` may replace the modules here.

    Not where gradients are needed, nor under tracing, dispatch modes and function transforms.
    A compiler gets the modules, which it fuses itself, unless the native operator is available.
    """
    if differentiating(x, *weights) or not x.is_floating_point():
        return False
    if torch.compiler.is_compiling():
        return select_backend(x) == "native"
    return (
        not torch.jit.is_tracing()  # type: ignore[attr-defined]
        and not torch.onnx.is_in_onnx_export()
        and not is_in_torch_dispatch_mode()
        and not torch._C._are_functorch_transforms_active()
    )


def additive_block(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The block's result.

    Args:
        x: (B, C, h, w).
        weights: :meth:`AdditiveBlockWeights.flat`.

    Returns:
        (B, C, h, w) in channels-last memory, in the precision of ``x``.

    Raises:
        BackendError: the forced backend cannot run on this device or precision.
    """
    backend = select_backend(x)
    if torch.compiler.is_compiling():
        out: Tensor = torch.ops.castling.additive_block(x, weights, backend)
        return out
    return _compute(x, weights, backend)  # dispatching a list of 24 tensors takes 30 µs


def naive_additive_block(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The block in basic operators; arguments and result as :func:`additive_block`'s."""
    block = AdditiveBlockWeights.from_flat([weight.to(x.dtype) for weight in weights])
    channels = x.shape[1]

    def depthwise(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(image, weight, bias, padding=1, groups=channels)

    if block.local:
        first, middle, last = block.local
        x = F.conv2d(F.gelu(depthwise(F.conv2d(x, *first), *middle)), *last) + x
    query, key, value = F.conv2d(x, *block.qkv).chunk(3, dim=1)
    mixed = _gated(query, block.query, depthwise) + _gated(key, block.key, depthwise)
    x = depthwise(depthwise(mixed, *block.gamma) * value, *block.project) + x
    out = F.conv2d(F.gelu(F.conv2d(x, *block.up)), *block.down) + x
    return out.contiguous(memory_format=torch.channels_last)


def _gated(
    image: Tensor,
    weights: SpatialChannelWeights,
    depthwise: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """Φ(image); besides the convolution the image is read twice and written once."""
    scores = F.relu(depthwise(image, weights.depthwise, weights.bias))
    positions = torch.sigmoid(F.conv2d(scores, weights.position))
    batch, channels, height, width = image.shape
    pixels = positions.reshape(batch, 1, height * width)
    sums = pixels @ image.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
    mean = (sums / (height * width)).reshape(batch, channels, 1, 1)
    return image * (positions * torch.sigmoid(F.conv2d(mean, weights.channel)))


def _compute(x: Tensor, weights: Sequence[Tensor], backend: str) -> Tensor:
    if backend == "native" and x.device.type == "cpu" and native.available():
        from castling.ops.native.additive_block import additive_block_forward

        return additive_block_forward(x, weights)
    return naive_additive_block(x, weights)


def _fake(x: Tensor, weights: Sequence[Tensor], backend: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _in_basic_operators(x: Tensor, weights: Sequence[Tensor], backend: str) -> Tensor:
    return naive_additive_block(x, weights)


# The last argument keeps the name ``path``: programs exported by earlier versions hold it.
library.define("additive_block(Tensor x, Tensor[] weights, str path) -> Tensor")
library.impl("additive_block", _compute, "CompositeExplicitAutograd")
torch.library.register_fake("castling::additive_block", _fake, lib=library)
register_decomposition(torch.ops.castling.additive_block.default)(_in_basic_operators)
