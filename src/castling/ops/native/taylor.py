"""Exact second-order Taylor attention in C++, for tensors on a CPU.

- ``"direct"`` computes tiles of the similarity, without exponentials or running maxima.
- ``"features"`` computes slices of the symmetric features: a state of 1 + d + d(d + 1)/2 rows per
  head, and 96 features of 128 tokens at a time.
- ``"auto"`` takes the one with fewer multiplications.

Sums are float32 for every input precision; results do not depend on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from castling.ops.native.arguments import TAYLOR, dtype_code
from castling.ops.native.library import check, function
from castling.ops.native.structures import packer
from castling.ops.taylor_features import taylor_feature_count
from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors, order_of

# The state's rows are padded to this many floats: the widest vector of any instruction set.
_LANES = 16

_pack = packer(TAYLOR.members)


def taylor_attention_forward(
    tensors: TaylorTensors, options: TaylorOptions, save_state: bool
) -> tuple[Tensor, Tensor]:
    """out_i = Σ_j p_ij·v_j / (Σ_j p_ij + N·eps) with p = 1 + z + z²/2.

    Args:
        tensors: of one precision, float32, bfloat16 or float16; any strides.
        options: the formula.
        save_state: keep what :func:`taylor_attention_backward` needs.

    Returns:
        Output (B, N_q, H, d_v), contiguous; float32 state of :func:`taylor_state_shape`. Without
        any key that takes part the output is zero.

    Raises:
        ValueError: an unsupported dtype, or an unknown order.
    """
    query, key, value, _ = tensors
    dtype = dtype_code(query, key, value)
    out = value.new_empty((*query.shape[:3], value.shape[3]))
    shape = taylor_state_shape(tensors, options, save_state)
    state = value.new_empty(shape, dtype=torch.float32)
    if 0 in (*query.shape, *value.shape):
        return out.zero_(), state.zero_()
    saved = state if save_state else None
    _run("taylor_forward", dtype, tensors, options, saved, out, (None, None, None, None))
    return out, state


def taylor_attention_backward(
    grad_out: Tensor, tensors: TaylorTensors, saved: tuple[Tensor, ...], options: TaylorOptions
) -> tuple[Tensor, ...]:
    """Gradients of :func:`taylor_attention_forward`; similarities and features are recomputed.

    Args:
        grad_out: (B, N_q, H, d_v), gradient of the output; any strides.
        tensors: as in the forward pass.
        saved: its output and state.
        options: as in the forward pass.

    Returns:
        Gradients of query, key and value, contiguous, in their dtype; zero at masked keys and at
        rows of zeros under a norm with eps.

    Raises:
        ValueError: as :func:`taylor_attention_forward`.
    """
    query, key, value, key_mask = tensors
    out, state = saved
    dtype = dtype_code(query, key, value, out, grad_out)
    grad_query = query.new_empty(query.shape)
    # The kernel does not visit masked keys.
    fresh = Tensor.new_empty if key_mask is None else Tensor.new_zeros
    grad_key, grad_value = fresh(key, key.shape), fresh(value, value.shape)
    gradients = (grad_query, grad_key, grad_value)
    if 0 in (*query.shape, *value.shape):
        return grad_query.zero_(), grad_key.zero_(), grad_value.zero_()
    _run("taylor_backward", dtype, tensors, options, state, out, (grad_out, *gradients))
    return gradients


def taylor_state_shape(
    tensors: TaylorTensors, options: TaylorOptions, save_state: bool
) -> tuple[int, ...]:
    """Shape of the state that the backward pass needs: row sums, table of the features, shift.

    Returns:
        (0,) without ``save_state``; (B, H, N_q + d_v) for ``"direct"``; for ``"features"`` a row of
        F·(⌈d_v/16⌉·16 + 1) + N_q + d_v numbers per head, F = (d + 1)(d + 2)/2.
    """
    if not save_state:
        return (0,)
    batch, queries, heads, dim = tensors.query.shape
    value_dim = tensors.value.shape[3]
    if _order(tensors, options) == "direct":
        return (batch, heads, queries + value_dim)
    padded = -(-value_dim // _LANES) * _LANES
    table = taylor_feature_count("exact", dim) * (padded + 1)
    return (batch, heads, table + queries + value_dim)


def _order(tensors: TaylorTensors, options: TaylorOptions) -> str:
    _, queries, _, dim = tensors.query.shape
    _, keys, _, value_dim = tensors.value.shape
    features = taylor_feature_count("exact", dim)
    return order_of(options.order, queries, keys, dim, value_dim, features)


def _run(
    name: str,
    dtype: int,
    tensors: TaylorTensors,
    options: TaylorOptions,
    state: Tensor | None,
    out: Tensor,
    gradients: tuple[Tensor | None, ...],
) -> None:
    """Call a kernel; ``gradients`` of output, query, key and value."""
    query, key, value, key_mask = tensors
    mask = None if key_mask is None else key_mask.contiguous()
    batch, queries, heads, dim = query.shape
    grad_out, grad_query, grad_key, grad_value = gradients
    arguments = _pack(
        threads=torch.get_num_threads(),
        dtype=dtype,
        batch=batch,
        heads=heads,
        queries=queries,
        keys=value.shape[1],
        dim=dim,
        value_dim=value.shape[3],
        normalise=options.qk_norm,
        features=_order(tensors, options) == "features",
        eps=options.eps,
        key_mask=0 if mask is None else mask.data_ptr(),
        state=0 if state is None else state.data_ptr(),
        query=query,
        key=key,
        value=value,
        out=out,
        grad_out=grad_out,
        grad_query=grad_query,
        grad_key=grad_key,
        grad_value=grad_value,
    )
    check(function(name)(arguments))
