"""ReLU linear attention: Sim(q, k) = ⟨relu(q), relu(k)⟩ (EfficientViT, ICCV 2023, §3.1)."""

from __future__ import annotations

from torch import Tensor

from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors


def relu_linear(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    eps: float = 1e-5,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Σ_j ⟨relu(q_i), relu(k_j)⟩ v_j / (Σ_j ⟨relu(q_i), relu(k_j)⟩ + N·eps).

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        eps: added to the mean of a row of similarities: rows without a positive match give zeros.
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.
    """
    return linear_attention(
        LinearTensors(query, key, value, key_mask=key_mask),
        LinearOptions("relu", "rowsum", row_eps=eps),
    )
