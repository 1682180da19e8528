"""Linear attention in basic operators: the reference of :mod:`castling.ops.linear_attention`."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from castling.ops.common import autocast_off, count_keys, mask_tokens, normalise_rows, upcast
from castling.ops.local import LocalResidual, local_residual

Features = Literal["unit", "relu", "squares", "identity"]
Normalisation = Literal["l2", "rowsum", "none"]
KeyValueScale = float | Literal["tokens"]


def squared_directions(x: Tensor, eps: float) -> Tensor:
    """φ = w/√(‖w‖² + eps) with w = x²/(‖x‖² + eps), squared channel by channel; (..., d).

    The first division only keeps the squares inside the floating-point range.
    """
    squares = x.square()
    squares = squares / (squares.sum(dim=-1, keepdim=True) + eps)
    return squares * torch.rsqrt(squares.square().sum(dim=-1, keepdim=True) + eps)


def _features(x: Tensor, features: Features, eps: float) -> Tensor:
    if features == "unit":
        return normalise_rows(x, eps)
    if features == "relu":
        return x.relu()
    return squared_directions(x, eps) if features == "squares" else x


def naive_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    features: Features,
    normalize: Normalisation,
    identity: float,
    gamma: float,
    alpha: float,
    scalar: Tensor | None,
    kv_scale: KeyValueScale,
    eps: float,
    row_eps: float,
    key_mask: Tensor | None,
    residual: Tensor | None,
    local: LocalResidual | None,
) -> Tensor:
    """The formula in basic operators; arguments and result as in :func:`linear_attention`."""
    dtype = value.dtype
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        v = mask_tokens(v, key_mask)
        scale = 1.0 / count_keys(k, key_mask) if kv_scale == "tokens" else kv_scale
        # The scale stands at the keys, so that sums over many tokens stay in range.
        k = mask_tokens(_features(k, features, eps), key_mask) * (scale * gamma)
        q = _features(q, features, eps)
        state = torch.einsum("bnhd,bnhe->bhde", k, v)
        out = torch.einsum("bnhd,bhde->bnhe", q, state)
        constant: Tensor | float = alpha
        if scalar is not None:
            constant = alpha + scalar.to(v.dtype).square()
        if scalar is not None or alpha:
            out = out + v.sum(dim=1, keepdim=True) * (scale * constant)
        if identity:
            out = out + identity * (v if residual is None else residual.to(v.dtype))
        if normalize == "rowsum":
            rows = torch.einsum("bnhd,bhd->bnh", q, k.sum(dim=1)).unsqueeze(-1)
            number: Tensor | int = key.shape[1]
            if key_mask is not None:
                number = key_mask.sum(dim=1).to(v.dtype)[:, None, None, None]
            rows = rows + scale * constant * number + row_eps
            out = out / rows.masked_fill(rows == 0, 1)
        elif normalize == "l2":
            out = normalise_rows(out, eps)
        if local is not None:
            out = out + local_residual(v, local)
        return out.to(dtype)
