"""Exact Taylor attention as one operator, ``castling::taylor_attention``, in C++ and Triton."""

from __future__ import annotations

from typing import Any

from castling.ops import native, triton
from castling.ops.macs import register_macs
from castling.ops.operators import FusedOperator
from castling.ops.quadratic_taylor import naive_exact_taylor
from castling.ops.taylor_features import taylor_feature_count
from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors, order_of


def _state_shape(
    tensors: TaylorTensors, options: TaylorOptions, backend: str, save_state: bool
) -> tuple[Any, ...]:
    module: Any = native if backend == "native" else triton
    shape: tuple[Any, ...] = module.taylor_state_shape(tensors, options, save_state)
    return shape


fused_taylor_attention = FusedOperator(
    name="taylor_attention",
    tensor_schema="Tensor query, Tensor key, Tensor value, Tensor? key_mask",
    option_schema="bool qk_norm, float eps, str order",
    tensors=TaylorTensors,
    options=TaylorOptions,
    same_dtype=3,
    keeps_output=True,
    naive=naive_exact_taylor,
    state_shape=_state_shape,
)


def _macs(
    query: Any, key: Any, value: Any, mask: Any, qk_norm: bool, eps: float, order: str,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """As the naive formula in the same order is counted."""
    batch, queries, heads, dim = query
    keys, value_dim = value[1], value[3]
    features = taylor_feature_count("exact", dim)
    if order_of(order, queries, keys, dim, value_dim, features) == "direct":
        return int(batch * heads * queries * keys * (dim + value_dim))
    return int(batch * heads * features * ((queries + keys) * value_dim + queries))


def _backward_macs(grad: Any, *arguments: Any, **rest: Any) -> int:
    """Two gradients of every product, and the similarities recomputed."""
    query, key, value, mask, _out, _state, qk_norm, eps, order, *_backend = arguments
    batch, queries, heads, dim = query
    keys, value_dim = value[1], value[3]
    features = taylor_feature_count("exact", dim)
    count = 2 * _macs(query, key, value, mask, qk_norm, eps, order)
    if order_of(order, queries, keys, dim, value_dim, features) == "direct":
        count += int(batch * heads * queries * keys * dim)
    return count


register_macs(fused_taylor_attention.operator(), _macs)
register_macs(fused_taylor_attention.backward_operator(), _backward_macs)
