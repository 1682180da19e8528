"""Linear attention as one operator, ``castling::linear_attention``, in C++ and Triton."""

from __future__ import annotations

from typing import Any

from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.macs import register_macs
from castling.ops.naive_linear_attention import naive_linear_attention
from castling.ops.operators import FusedOperator


def _state_shape(
    tensors: LinearTensors, options: LinearOptions, backend: str, save_state: bool
) -> tuple[Any, ...]:
    batch, _, heads, dim = tensors.query.shape
    value_dim = tensors.value.shape[-1]
    return (batch, heads, dim * value_dim + dim + value_dim) if save_state else (0,)


fused_linear_attention = FusedOperator(
    name="linear_attention",
    tensor_schema=(
        "Tensor query, Tensor key, Tensor value, Tensor? residual, Tensor? local_weight, "
        "Tensor? key_mask, Tensor? scalar"
    ),
    option_schema=(
        "str features, str normalize, float identity, float gamma, float alpha, float kv_scale, "
        "float eps, float row_eps, SymInt[] grid, int prefix"
    ),
    tensors=LinearTensors,
    options=LinearOptions,
    same_dtype=4,
    keeps_output=False,
    naive=naive_linear_attention,
    state_shape=_state_shape,
)


def _macs(
    query: Any, key: Any, value: Any, residual: Any, weight: Any, mask: Any, scalar: Any,
    features: str, normalize: str, *rest: Any, **_: Any,
) -> int:  # fmt: skip
    """As the naive formula is counted: state, φ(q)·S, row sums, taps."""
    batch, queries, heads, dim = query
    keys, value_dim = value[1], value[3]
    count = batch * heads * dim * value_dim * (queries + keys)
    if normalize == "rowsum":
        count += batch * heads * queries * dim
    if weight is not None:
        grid = rest[6]
        taps = weight[2] * weight[3]
        tokens = grid[0] * grid[1] if grid else keys
        count += batch * heads * value_dim * tokens * taps
    return int(count)


def _backward_macs(grad: Any, *arguments: Any, **_: Any) -> int:
    """Two gradients of every product, and the output's rows recomputed."""
    query, key, value, residual, weight, mask, scalar, _state, *options = arguments
    batch, queries, heads, dim = query
    again = batch * queries * heads * dim * value[3]
    return 2 * _macs(query, key, value, residual, weight, mask, scalar, *options) + int(again)


register_macs(fused_linear_attention.operator(), _macs)
register_macs(fused_linear_attention.backward_operator(), _backward_macs)
