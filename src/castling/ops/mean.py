"""Mean attention: Sim(q, k) = ⟨q/√N, k/√N⟩, no normaliser (QT-ViT, NeurIPS 2024, Table 2)."""

from __future__ import annotations

from torch import Tensor

from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors


def mean_attention(
    query: Tensor, key: Tensor, value: Tensor, *, key_mask: Tensor | None = None
) -> Tensor:
    """(1/N) Σ_j ⟨q_i, k_j⟩ v_j.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.
    """
    return linear_attention(
        LinearTensors(query, key, value, key_mask=key_mask), LinearOptions("identity", "none")
    )
