"""First-order Taylor attention: exp(z) ≈ 1 + z with z = ⟨q̂, k̂⟩ (QT-ViT, NeurIPS 2024, Table 2)."""

from __future__ import annotations

from torch import Tensor

from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors


def first_order_taylor(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Σ_j (1 + ⟨q̂_i, k̂_j⟩) v_j / Σ_j (1 + ⟨q̂_i, k̂_j⟩).

    Queries and keys are normalised: otherwise 1 + z can be negative and row sums cross zero.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        eps: under the root of the norms, and added to the mean row sum (0 when every key is −q).
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.
    """
    return linear_attention(
        LinearTensors(query, key, value, key_mask=key_mask),
        LinearOptions("unit", "rowsum", alpha=1.0, eps=eps, row_eps=eps),
    )
