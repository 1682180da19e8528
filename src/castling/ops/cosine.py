"""Cosine attention: Sim(q, k) = ⟨q̂, k̂⟩."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors


def cosine_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    normalize: Literal["l2", "none"] = "l2",
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    auxiliary_output: Tensor | None = None,
) -> Tensor:
    """(1/N) Σ_j ⟨q̂_i, k̂_j⟩ v_j [+ extra_i], each row then divided by its norm with ``"l2"``.

    A row of cosines sums to anything between −N and N, so there is no row-sum normaliser.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        normalize: ``"l2"`` or ``"none"``.
        eps: under the root of every norm.
        key_mask: (B, N_k) boolean, True where a key takes part.
        auxiliary_output: (B, N_q, H, d_v), added before the normalisation.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.

    Raises:
        ValueError: shapes disagree, or there is no such normalisation.
    """
    if normalize not in ("l2", "none"):
        raise ValueError(f'normalize must be "l2" or "none", got {normalize!r}')
    return linear_attention(
        LinearTensors(query, key, value, residual=auxiliary_output, key_mask=key_mask),
        LinearOptions(
            "unit", normalize, identity=0.0 if auxiliary_output is None else 1.0, eps=eps
        ),
    )
