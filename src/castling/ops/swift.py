"""Efficient additive attention: one global query gates every key (SwiftFormer, ICCV 2023)."""

from __future__ import annotations

import torch
from torch import Tensor

from castling.ops.common import autocast_off, normalise_rows, upcast


def global_query(query: Tensor, weight: Tensor, eps: float = 1e-6) -> Tensor:
    """Σ_i α_i q_i with α the scores ⟨q_i, w⟩/√d divided by their norm over the tokens.

    Shaker et al., arXiv 2303.15446, §3.2, as their code normalises α.

    Args:
        query: (B, N, d), normalised.
        weight: w, (d,).
        eps: under the root of the norm.

    Returns:
        (B, 1, d) in the dtype of ``query``; sums are float32 or better.
    """
    with autocast_off(query):
        q, w = upcast(query, weight)
        scores = (q @ w.unsqueeze(-1)).transpose(1, 2) * query.shape[-1] ** -0.5  # (B, 1, N)
        return torch.matmul(normalise_rows(scores, eps), q).to(query.dtype)


def unit_rows(x: Tensor, eps: float = 1e-6) -> Tensor:
    """x/√(‖x‖² + eps) over the last dimension, in float32 or better, in the dtype of ``x``."""
    with autocast_off(x):
        (wide,) = upcast(x)
        return normalise_rows(wide, eps).to(x.dtype)
