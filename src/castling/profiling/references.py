"""Attention as the authors' code computes it, in eager PyTorch, to time our backends against.

Each function takes the packed projection (B, N, 3, H, d) and returns joined heads, (B, N, H·d),
through the same permutes, norms, products, divisions and convolutions as the authors' blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from castling.attention import LinearAngular, QuadraticTaylor, ReLULinear, Softmax
from castling.attention.base import AttentionCore
from castling.attention.local import GridConv

Packed = Callable[[Tensor], Tensor]

#: A reference that needs more memory than this is skipped.
MAX_BYTES = 1 << 29


def _heads_first(packed: Tensor) -> tuple[Tensor, ...]:
    return packed.permute(2, 0, 3, 1, 4).unbind(0)


def _joined(out: Tensor) -> Tensor:
    return out.transpose(1, 2).reshape(out.shape[0], out.shape[2], -1)


def fused_softmax(packed: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v by PyTorch's fused kernel, called as in timm's blocks."""
    query, key, value = _heads_first(packed)
    return _joined(F.scaled_dot_product_attention(query, key, value))


def castling_block(core: AttentionCore, grid: tuple[int, int], prefix: int) -> Packed:
    """Castling-ViT: y = ½v + q̂(k̂ᵀv)/π, y/‖y‖ + Conv2d(v) (You et al., CVPR 2023)."""
    local = core.dconv
    weight = None if local is None else local.weight

    def block(packed: Tensor) -> Tensor:
        query, key, value = _heads_first(packed)
        query = query / query.norm(dim=-1, keepdim=True)
        key = key / key.norm(dim=-1, keepdim=True)
        out = 0.5 * value + (1 / math.pi) * (query @ (key.transpose(-2, -1) @ value))
        out = out / out.norm(dim=-1, keepdim=True)
        if weight is not None and isinstance(local, GridConv):
            batch, heads, _, dim = value.shape
            image = value[:, :, prefix:].transpose(2, 3).reshape(batch, heads * dim, *grid)
            image = F.conv2d(
                image, weight.to(value.dtype), padding=weight.shape[-1] // 2, groups=heads * dim
            )
            image = image.reshape(batch, heads, dim, -1).transpose(2, 3)
            out = out + (F.pad(image, (0, 0, prefix, 0)) if prefix else image)
        elif weight is not None:
            taps = weight.shape[2]
            out = out + F.conv2d(
                value, weight.to(value.dtype), padding=(taps // 2, 0), groups=value.shape[1]
            )
        return _joined(out)

    return block


def efficientvit_block(packed: Tensor) -> Tensor:
    """ReLU attention, normaliser from a column of ones in v (Cai et al., ICCV 2023)."""
    query, key, value = _heads_first(packed)
    query, key = query.relu(), key.relu()
    out = query @ (key.transpose(-2, -1) @ F.pad(value, (0, 1), value=1.0))
    # ε relative to the mean over the row, as in ours, so that both compute the same function.
    eps = 1e-5 * packed.shape[1]
    return _joined(out[..., :-1] / (out[..., -1:] + eps))


def released_taylor_block(scalar: Tensor) -> Packed:
    """QT-ViT's released code: normalised squares with s appended, normaliser by a product."""

    def features(x: Tensor) -> Tensor:
        squares = F.normalize(x, dim=-1).square()
        squares = squares / squares.norm(dim=-1, keepdim=True)
        return torch.cat((squares, scalar.to(x.dtype).expand(*x.shape[:-1], 1)), dim=-1)

    def block(packed: Tensor) -> Tensor:
        query, key, value = _heads_first(packed)
        query, key = features(query), features(key)
        out = query @ (key.transpose(-2, -1) @ value)
        rows = query @ key.sum(dim=-2, keepdim=True).transpose(-2, -1)
        return _joined(out / (rows + 1e-15))

    return block


def kronecker_block(packed: Tensor) -> Tensor:
    """1 + z + z²/2 with the features of the whole Kronecker square in memory (Xu et al., 2024)."""

    def features(x: Tensor) -> Tensor:
        x = F.pad(F.normalize(x, dim=-1), (0, 1), value=1.0)
        square = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2)
        return F.pad(square, (0, 1), value=1.0) * math.sqrt(0.5)

    query, key, value = _heads_first(packed)
    query, key = features(query), features(key)
    out = query @ (key.transpose(-2, -1) @ value)
    rows = query @ key.sum(dim=-2, keepdim=True).transpose(-2, -1)
    return _joined(out / rows)


def reference_for(
    core: AttentionCore, packed: Tensor, grid: tuple[int, int], prefix: int
) -> Packed | None:
    """The authors' code for the same function as ``core``; None where there is none.

    Args:
        core: the attention.
        packed: (B, N, 3, H, d); only its shape is used.
        grid: (h, w) of the tokens after the prefix.
        prefix: number of tokens before the grid.

    Raises:
        ValueError: it would need more than ``MAX_BYTES``.
    """
    config = core.config
    if isinstance(config, LinearAngular):
        published = (config.constant, config.normalize, config.kv_scale) == ("identity", "l2", 1.0)
        return castling_block(core, grid, prefix) if published else None
    if isinstance(config, Softmax) or core.dconv is not None:
        return None
    if isinstance(config, ReLULinear):
        return efficientvit_block
    if isinstance(config, QuadraticTaylor) and config.form == "released":
        return released_taylor_block(core.kernel.ones_scale1)  # type: ignore[arg-type]
    if isinstance(config, QuadraticTaylor) and config.form == "exact" and config.qk_norm:
        needed = 4 * packed.shape[:2].numel() * packed.shape[3] * (packed.shape[4] + 1) ** 2
        needed *= packed.itemsize
        if needed > MAX_BYTES:
            raise ValueError(f"the authors' code would need {needed / 1e9:.0f} GB of features")
        return kronecker_block
    return None
