"""No speed without correctness: what a subject must pass before it is timed."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from castling.attention import Attention, LinearAngular, ReLULinear, Softmax
from castling.attention.config import AttentionConfig
from castling.ops.common import normalise_rows

#: Largest relative difference between an attention and its N×N form in float32.
TOLERANCE = 1e-4


class GateError(RuntimeError):
    """A subject gave a wrong result; it is not timed."""


def require_sane(name: str, output: object, batch: int) -> None:
    """Raise GateError unless ``output`` is one finite tensor with ``batch`` rows."""
    if not isinstance(output, Tensor) or output.shape[0] != batch:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise GateError(f"{name} gave {shape} for a batch of {batch} images")
    if not bool(torch.isfinite(output).all()):
        raise GateError(f"{name} gave NaN or infinite values")


def explicit_difference(attention: nn.Module, tokens: int = 49) -> float | None:
    """How far an attention is from the same attention written as one N×N matrix times v.

    Args:
        attention: a token mixer.
        tokens: N of the trial, small because the matrix is written out.

    Returns:
        max |Δ| / max |reference|, or None where no explicit form is known here.
    """
    if not isinstance(attention, Attention):
        return None
    reference = _explicit(attention.config)
    if reference is None:
        return None
    parameter = next(attention.parameters())
    generator = torch.Generator().manual_seed(0)
    shape = (2, tokens, attention.num_heads, attention.head_dim)
    query, key, value = (
        torch.randn(shape, generator=generator).to(parameter.device) for _ in range(3)
    )
    with torch.no_grad():
        found = attention.kernel(query, key, value)
        expected = reference(query.double(), key.double(), value.double())
    return float((found.double() - expected).abs().max() / expected.abs().max())


def _scores(query: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("bqhd,bkhd->bhqk", query, key)


def _apply(matrix: Tensor, value: Tensor) -> Tensor:
    return torch.einsum("bhqk,bkhd->bqhd", matrix, value)


def _explicit(
    config: AttentionConfig,
) -> Callable[[Tensor, Tensor, Tensor], Tensor] | None:
    if isinstance(config, Softmax):
        return lambda q, k, v: _apply((_scores(q, k) * q.shape[-1] ** -0.5).softmax(-1), v)
    if isinstance(config, ReLULinear):

        def relu(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = _scores(q.relu(), k.relu())
            return _apply(scores / scores.sum(-1, keepdim=True), v)

        return relu
    if isinstance(config, LinearAngular) and (
        config.constant,
        config.normalize,
        config.kv_scale,
    ) == ("identity", "l2", 1.0):

        def angular(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            cosines = _scores(normalise_rows(q, 1e-6), normalise_rows(k, 1e-6))
            return normalise_rows(_apply(cosines / math.pi, v) + 0.5 * v, 1e-6)

        return angular
    return None
