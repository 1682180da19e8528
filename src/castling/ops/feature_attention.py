"""Attention with Sim(q, k) = ⟨φ(q), φ(k)⟩, in linear order and in N×N order."""

from __future__ import annotations

from torch import Tensor

from castling.ops.common import (
    apply_state,
    apply_state_and_total,
    count_keys,
    mask_tokens,
    state_of,
    weighted_values,
)


def feature_attention(
    query_features: Tensor,
    key_features: Tensor,
    value: Tensor,
    *,
    row_sum: bool,
    eps: float,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Σ_j ⟨φ(q_i), φ(k_j)⟩ v_j, computed as φ(q_i)ᵀ(Σ_j φ(k_j) v_jᵀ) in O(N).

    Sums over tokens are means (1/N is folded into the state), so that they neither overflow nor
    lose precision as N grows; a row-sum normaliser cancels the factor.

    Args:
        query_features: (B, N_q, H, D) in accumulation precision.
        key_features: (B, N_k, H, D).
        value: (B, N_k, H, d_v).
        row_sum: divide by Σ_j ⟨φ(q_i), φ(k_j)⟩.
        eps: added to the (mean) row sum.
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v): the weighted average with ``row_sum``, else 1/N of the weighted sum, with
        N the number of keys that take part.
    """
    key_features = mask_tokens(key_features, key_mask)
    value = mask_tokens(value, key_mask)
    key_features = key_features * (1.0 / count_keys(key_features, key_mask))
    state = state_of(key_features, value)
    if not row_sum:
        return apply_state(query_features, state)
    out, total = apply_state_and_total(query_features, state, key_features.sum(dim=1))
    return out / (total + eps)


def similarity_attention(
    similarity: Tensor,
    value: Tensor,
    *,
    row_sum: bool,
    eps: float,
    key_mask: Tensor | None = None,
) -> Tensor:
    """:func:`feature_attention` in N×N order, from an explicit similarity.

    Args:
        similarity: (B, H, N_q, N_k).
        value: (B, N_k, H, d_v).
        row_sum: as in :func:`feature_attention`.
        eps: as in :func:`feature_attention`.
        key_mask: (B, N_k) boolean, True where a key takes part.
    """
    if key_mask is not None:
        similarity = similarity.masked_fill(~key_mask[:, None, None, :], 0)
        value = mask_tokens(value, key_mask)
    similarity = similarity / count_keys(value, key_mask)
    out = weighted_values(similarity, value)
    if not row_sum:
        return out
    return out / (similarity.sum(dim=-1).transpose(1, 2).unsqueeze(-1) + eps)
