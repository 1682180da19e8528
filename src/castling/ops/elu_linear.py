"""ELU linear attention: φ(x) = elu(x) + 1 (Katharopoulos et al., ICML 2020, Eq. 7)."""

from __future__ import annotations

import torch
from torch import Tensor

from castling.ops.common import autocast_off, check_qkv, mask_tokens, upcast
from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors


def elu_features(x: Tensor) -> Tensor:
    """φ(x) = x + 1 where x > 0, else exp(x): elu(x) + 1 without its cancellation at −1."""
    return torch.where(x > 0, x + 1, x.clamp(max=0).exp())


def elu_linear(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Σ_j ⟨φ(q_i), φ(k_j)⟩ v_j / (Σ_j ⟨φ(q_i), φ(k_j)⟩ + N·eps).

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        eps: added to the mean of a row of similarities.
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.

    Raises:
        ValueError: shapes disagree.
    """
    check_qkv(query, key, value, key_mask)
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        # Masked before the map, whose gradient at a padded NaN would be NaN.
        k = mask_tokens(k, key_mask)
        out = linear_attention(
            LinearTensors(elu_features(q), elu_features(k), v, key_mask=key_mask),
            LinearOptions("identity", "rowsum", row_eps=eps),
        )
        return out.to(value.dtype)
