"""Quadratic Taylor attention: the released block, and the exact expansion in basic operators.

Derived from exp(z) ≈ 1 + z + z²/2 = ((z + 1)² + 1)/2 ≥ ½ (Xu et al., QT-ViT, NeurIPS 2024). Only
the exact form equals that polynomial, monotone only for z ≥ −1: hence unit queries and keys
by default.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from castling.ops.common import autocast_off, check_qkv, scores_of, upcast
from castling.ops.feature_attention import feature_attention, similarity_attention
from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.taylor_features import (
    scaled_vectors,
    symmetric_features,
    taylor_feature_count,
)
from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors, order_of


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

    With A = Σ_n k̃_n v_nᵀ, a = Σ_n k̃_n, b = Σ_n v_n and x̃ = x²/‖x²‖,
    out = (q̃ᵀA + s²·b)/(q̃ᵀa + s²·N): two passes over the tokens, no concatenation, a state
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
    return linear_attention(
        LinearTensors(query, key, value, key_mask=key_mask, scalar=scalar),
        LinearOptions("squares", "rowsum", eps=eps, row_eps=eps),
    )


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


def naive_exact_taylor(tensors: TaylorTensors, options: TaylorOptions) -> Tensor:
    """:func:`castling.ops.exact_taylor.exact_taylor` in basic operators."""
    query, key, value, key_mask = tensors
    qk_norm, eps, order = options
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        q = scaled_vectors(q, qk_norm=qk_norm, eps=eps)
        k = scaled_vectors(k, qk_norm=qk_norm, eps=eps)
        sizes = q.shape[1], k.shape[1], q.shape[-1], v.shape[-1]
        if order_of(order, *sizes, taylor_feature_count("exact", sizes[2])) == "direct":
            z = scores_of(q, k)
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
