"""The exact second-order Taylor attention in C++, for tensors on a CPU.

- ``"direct"`` goes through tiles of the similarity, without exponentials or running maxima;
- ``"features"`` goes through slices of the symmetric features: a state of 1 + d + d(d + 1)/2 rows
  per head, and no more than 96 features of 128 tokens at a time;
- ``"auto"`` takes the one that measured faster.

Sums are float32 whatever the inputs; results do not depend on the number of threads.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor

from castling.ops.native.arguments import dtype_code, packed
from castling.ops.native.library import check, function

# The state's rows are padded to this many floats: the widest vector of any instruction set.
_LANES = 16
# TaylorArguments of csrc/taylor.h: ten integers, eps, two addresses, eight tensors.
_LAYOUT = struct.Struct("=10qd2q40q")


def taylor_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    qk_norm: bool,
    eps: float,
    order: str,
    save_state: bool,
) -> tuple[Tensor, Tensor]:
    """out_i = Σ_j p_ij·v_j / (Σ_j p_ij + N·eps) with p = 1 + z + z²/2.

    Args:
        query: (B, N_q, H, d), float32, bfloat16 or float16; any strides.
        key: (B, N_k, H, d), same dtype.
        value: (B, N_k, H, d_v), same dtype.
        key_mask: (B, N_k) boolean, True where a key takes part; None keeps all.
        qk_norm: z = ⟨q̂, k̂⟩ with x̂ = x/√(‖x‖² + eps); otherwise z = ⟨q, k⟩/√d.
        eps: under the norms, and added to the mean of a row of similarities.
        order: ``"direct"``, ``"features"`` or ``"auto"``.
        save_state: keep what :func:`taylor_backward` needs.

    Returns:
        Output (B, N_q, H, d_v), contiguous; float32 state of :func:`taylor_state_shape`. Without
        any key that takes part the output is zero.

    Raises:
        ValueError: a dtype these operators do not know, or an unknown order.
    """
    batch, queries, heads, dim = query.shape
    keys, value_dim = key.shape[1], value.shape[3]
    order, dtype = _resolve(order, queries, keys, dim, value_dim), dtype_code(query, key, value)
    out = value.new_empty((batch, queries, heads, value_dim))
    state = value.new_empty(
        taylor_state_shape(batch, heads, dim, value_dim, order, queries, keys, save_state),
        dtype=torch.float32,
    )
    if 0 in (*query.shape, *value.shape):
        return out.zero_(), state.zero_()
    saved = state if save_state else None
    options = (dtype, key_mask, saved, qk_norm, eps, order)
    _run("taylor_forward", options, query, key, value, out, None, None, None, None)
    return out, state


def taylor_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    out: Tensor,
    state: Tensor,
    qk_norm: bool,
    eps: float,
    order: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of :func:`taylor_forward`; similarities and features are computed again.

    Args:
        grad_out: (B, N_q, H, d_v), gradient of the output; any strides.
        query: as forwards, like all that follow.
        key: as forwards.
        value: as forwards.
        key_mask: as forwards.
        out: the output.
        state: what the forward pass saved.
        qk_norm: as forwards.
        eps: as forwards.
        order: as forwards.

    Returns:
        Gradients of query, key and value, contiguous, in their dtype; zero at masked keys and at
        rows of zeros under a norm with eps.

    Raises:
        ValueError: as :func:`taylor_forward`.
    """
    order = _resolve(order, query.shape[1], key.shape[1], query.shape[3], value.shape[3])
    dtype = dtype_code(query, key, value, out, grad_out)
    grad_query = torch.empty(query.shape, dtype=query.dtype)
    # Masked keys are never visited.
    fresh = torch.empty if key_mask is None else torch.zeros
    grad_key, grad_value = fresh(key.shape, dtype=key.dtype), fresh(value.shape, dtype=value.dtype)
    gradients = (grad_query, grad_key, grad_value)
    if 0 in (*query.shape, *value.shape):
        return grad_query.zero_(), grad_key.zero_(), grad_value.zero_()
    options = (dtype, key_mask, state, qk_norm, eps, order)
    _run("taylor_backward", options, query, key, value, out, grad_out, *gradients)
    return gradients


def taylor_state_shape(
    batch: int,
    heads: int,
    dim: int,
    value_dim: int,
    order: str,
    queries: int,
    keys: int,
    save_state: bool,
) -> tuple[int, ...]:
    """Shape of the state that the backward pass needs: row sums, and the table of the features.

    Returns:
        (0,) without ``save_state``; (B, H, N_q) for ``"direct"``; for ``"features"`` a row of
        F·(⌈d_v/16⌉·16 + 1) + N_q numbers per head, F = (d + 1)(d + 2)/2.
    """
    if not save_state:
        return (0,)
    if _resolve(order, queries, keys, dim, value_dim) == "direct":
        return (batch, heads, queries)
    padded = -(-value_dim // _LANES) * _LANES
    return (batch, heads, _feature_count(dim) * (padded + 1) + queries)


def _feature_count(dim: int) -> int:
    return (dim + 1) * (dim + 2) // 2


def _resolve(order: str, queries: int, keys: int, dim: int, value_dim: int) -> str:
    """The order that ``"auto"`` means for these sizes."""
    if order in ("direct", "features"):
        return order
    if order != "auto":
        raise ValueError(f'order must be "auto", "direct" or "features", got {order!r}')
    direct = queries * keys * (dim + value_dim)
    features = (queries + keys) * _feature_count(dim) * (value_dim + 1)
    return "direct" if direct <= features else "features"


def _run(
    name: str,
    options: tuple[int, Tensor | None, Tensor | None, bool, float, str],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *others: Tensor | None,
) -> None:
    dtype, key_mask, state, qk_norm, eps, order = options
    mask = None if key_mask is None else key_mask.contiguous()
    batch, queries, heads, dim = query.shape
    arguments = _LAYOUT.pack(
        *(torch.get_num_threads(), dtype, batch, heads, queries, value.shape[1], dim),
        *(value.shape[3], qk_norm, order == "features", eps),
        *(0 if tensor is None else tensor.data_ptr() for tensor in (mask, state)),
        *(number for tensor in (query, key, value, *others) for number in packed(tensor)),
    )
    check(function(name)(arguments))
