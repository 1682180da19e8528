"""Quadratic Taylor attention: the released block and the exact expansion.

Derived from exp(z) ≈ 1 + z + z²/2 = ((z + 1)² + 1)/2 ≥ ½ (Xu et al., QT-ViT, NeurIPS 2024). Only
the exact form equals that polynomial, monotone only for z ≥ −1: hence unit queries and keys
by default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from castling.ops.common import autocast_off, check_qkv, count_keys, mask_tokens, upcast
from castling.ops.feature_attention import feature_attention, similarity_attention
from castling.ops.taylor_features import (
    released_features,
    scaled_vectors,
    symmetric_features,
    taylor_feature_count,
)

Order = Literal["auto", "direct", "features"]


def _squares_and_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Squares w = x²/(‖x‖² + eps) and their norm r = √(‖w‖² + eps): (..., d) and (..., 1)."""
    squares = x.square()
    squares = squares / (squares.sum(dim=-1, keepdim=True) + eps)
    return squares, (squares.square().sum(dim=-1, keepdim=True) + eps).sqrt()


def released_taylor(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scalar: Tensor,
    *,
    eps: float = 1e-9,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Attention with Sim(q, k) = ⟨q²,k²⟩/(‖q²‖‖k²‖) + s², divided by its row sum; O(N·d·d_v).

    Fused: with A = Σ_n k̃_n v_nᵀ, a = Σ_n k̃_n, b = Σ_n v_n, k̃ = k²/‖k²‖ and r = ‖q²‖,
    out = ((q²)ᵀA + s²·r·b)/((q²)ᵀa + s²·r·N): two passes over the tokens, no concatenation, a state
    of d·d_v + d + d_v numbers per head. Sums are means over the tokens.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        scalar: s, 0-dim.
        eps: under the norms, and added to the mean of a row of similarities.
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``; sums and norms are float32 or better.
    """
    check_qkv(query, key, value, key_mask)
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        v = mask_tokens(v, key_mask)
        scale = 1.0 / count_keys(k, key_mask)
        squares, norm = _squares_and_norm(k, eps)
        unit_key = mask_tokens(squares * (scale / norm), key_mask)
        state = torch.einsum("bnhd,bnhe->bhde", unit_key, v)
        key_sum = unit_key.sum(dim=1)
        offset = scalar.to(v.dtype).square()
        value_mean = v.sum(dim=1, keepdim=True) * (scale * offset)
        if key_mask is not None:
            # Nothing but eps is left below where no key takes part.
            offset = offset * key_mask.any(dim=1)[:, None, None, None]
        squares, norm = _squares_and_norm(q, eps)
        above = torch.einsum("bnhd,bhde->bnhe", squares, state) + norm * value_mean
        below = torch.einsum("bnhd,bhd->bnh", squares, key_sum).unsqueeze(-1)
        below = below + norm * (offset + eps)
        return (above / below).to(value.dtype)


def released_taylor_reference(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scalar: Tensor,
    *,
    eps: float = 1e-9,
    key_mask: Tensor | None = None,
) -> Tensor:
    """What :func:`released_taylor` computes, as the paper writes it: features with s appended."""

    def features(x: Tensor) -> Tensor:
        return released_features(x, scalar, eps)

    return taylor_attention(query, key, value, features, eps=eps, key_mask=key_mask)


def taylor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    features: Callable[[Tensor], Tensor],
    *,
    eps: float = 1e-9,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Σ_j ⟨φ(q_i), φ(k_j)⟩ v_j / Σ_j ⟨φ(q_i), φ(k_j)⟩ for any feature map φ, in linear order.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        features: φ, from float32 (or float64) vectors (..., d) to (..., D).
        eps: added to the mean of a row of similarities.
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.
    """
    check_qkv(query, key, value, key_mask)
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        out = feature_attention(
            features(q), features(k), v, row_sum=True, eps=eps, key_mask=key_mask
        )
        return out.to(value.dtype)


def exact_taylor(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    qk_norm: bool = True,
    order: Order = "auto",
    eps: float = 1e-9,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Attention with Sim(q, k) = 1 + z + z²/2 exactly, divided by its row sum.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        qk_norm: z = ⟨q̂, k̂⟩; otherwise z = ⟨q, k⟩/√d.
        order: ``"direct"`` forms the N_q×N_k similarity, O(N²·d); ``"features"`` the symmetric
            features, O(N·d³/2); ``"auto"`` takes the one with fewer multiplications (direct while
            N is below the number of features; features where N is unknown to an export).
        eps: under the norms, and added to the mean of a row of similarities.
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.

    Raises:
        ValueError: shapes disagree or ``order`` is unknown.
    """
    check_qkv(query, key, value, key_mask)
    if order not in ("auto", "direct", "features"):
        raise ValueError(f'order must be "auto", "direct" or "features", got {order!r}')
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        q = scaled_vectors(q, qk_norm=qk_norm, eps=eps)
        k = scaled_vectors(k, qk_norm=qk_norm, eps=eps)
        if order == "direct" or (order == "auto" and _direct_is_cheaper(q, k, v)):
            z = torch.einsum("bqhd,bkhd->bhqk", q, k)
            out = similarity_attention(
                1 + z + 0.5 * z.square(), v, row_sum=True, eps=eps, key_mask=key_mask
            )
        else:
            out = feature_attention(
                *(symmetric_features(q), symmetric_features(k), v),
                row_sum=True,
                eps=eps,
                key_mask=key_mask,
            )
        return out.to(value.dtype)


def _direct_is_cheaper(query: Tensor, key: Tensor, value: Tensor) -> bool:
    queries, keys = query.shape[1], key.shape[1]
    if isinstance(queries, torch.SymInt) or isinstance(keys, torch.SymInt):
        return False
    dim, value_dim = query.shape[-1], value.shape[-1]
    features = taylor_feature_count("exact", dim)
    return queries * keys * (dim + value_dim) < (queries + keys) * features * value_dim
