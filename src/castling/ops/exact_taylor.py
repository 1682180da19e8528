"""Exact second-order Taylor attention on the selected backend."""

from __future__ import annotations

import torch
from torch import Tensor

from castling.ops.backends import FUSED, compiled, select_backend
from castling.ops.common import check_qkv
from castling.ops.fused_taylor_attention import fused_taylor_attention
from castling.ops.quadratic_taylor import naive_exact_taylor
from castling.ops.taylor_inputs import Order, TaylorOptions, TaylorTensors


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
        ValueError: shapes disagree, ``order`` is unknown, or ``eps`` is negative.
        BackendError: the forced backend cannot run on this input.
    """
    check_qkv(query, key, value, key_mask)
    if order not in ("auto", "direct", "features"):
        raise ValueError(f'order must be "auto", "direct" or "features", got {order!r}')
    if not eps >= 0:
        raise ValueError(f"eps is added under roots and cannot be negative, got {eps}")
    if order == "auto" and torch.compiler.is_exporting():
        sizes = query.shape[1], key.shape[1]
        if any(isinstance(size, torch.SymInt) for size in sizes):
            order = "features"  # the exported program must run at every size
    tensors = TaylorTensors(query, key, value, key_mask)
    options = TaylorOptions(qk_norm, eps, order)
    backend = select_backend(query, value)
    if backend in FUSED:
        return fused_taylor_attention(tensors, options, backend)
    formula = compiled(naive_exact_taylor) if backend == "compiled" else naive_exact_taylor
    return formula(tensors, options)
