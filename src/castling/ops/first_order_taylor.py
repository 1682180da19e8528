"""First-order Taylor attention: exp(z) ≈ 1 + z with z = ⟨q̂, k̂⟩ (QT-ViT, NeurIPS 2024, Table 2)."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from castling.ops.common import autocast_off, check_qkv, normalise_rows, upcast
from castling.ops.feature_attention import feature_attention


def first_order_taylor(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Σ_j (1 + ⟨q̂_i, k̂_j⟩) v_j / Σ_j (1 + ⟨q̂_i, k̂_j⟩).

    Queries and keys are unit vectors: with raw ones 1 + z turns negative and row sums cross zero.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        eps: under the root of the norms, and added to the mean row sum (0 when every key is −q).
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.
    """
    check_qkv(query, key, value, key_mask)
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        q, k = (F.pad(normalise_rows(tensor, eps), (0, 1), value=1.0) for tensor in (q, k))
        out = feature_attention(q, k, v, row_sum=True, eps=eps, key_mask=key_mask)
        return out.to(value.dtype)
