"""Exact Taylor attention as one operator, ``castling::taylor_attention``, in C++ and Triton."""

from __future__ import annotations

from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor

from castling.ops import native, triton
from castling.ops.macs import register_macs
from castling.ops.operators import FusedOperator
from castling.ops.quadratic_taylor import Order, direct_is_cheaper, naive_exact_taylor


class _Tensors(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor
    key_mask: Tensor | None


class _Options(NamedTuple):
    qk_norm: bool
    eps: float
    order: Order


def _forward(
    backend: ModuleType, tensors: _Tensors, options: _Options, save_state: bool
) -> tuple[Tensor, Tensor]:
    result: tuple[Tensor, Tensor] = backend.taylor_forward(*tensors, *options, save_state)
    return result


def _backward(
    backend: ModuleType,
    grad: Tensor,
    tensors: _Tensors,
    saved: tuple[Tensor, ...],
    options: _Options,
) -> tuple[Tensor | None, ...]:
    gradients: tuple[Tensor, ...] = backend.taylor_backward(grad, *tensors, *saved, *options)
    return gradients


def _naive(tensors: _Tensors, options: _Options) -> Tensor:
    query, key, value, key_mask = tensors
    return naive_exact_taylor(query, key, value, key_mask=key_mask, **options._asdict())


def _state_shape(
    tensors: _Tensors, options: _Options, path: str, save_state: bool
) -> tuple[Any, ...]:
    batch, queries, heads, dim = tensors.query.shape
    keys, value_dim = tensors.value.shape[1], tensors.value.shape[3]
    backend = native if path == "native" else triton
    shape: tuple[Any, ...] = backend.taylor_state_shape(
        batch, heads, dim, value_dim, options.order, queries, keys, save_state
    )
    return shape


_operator = FusedOperator(
    name="taylor_attention",
    tensor_schema="Tensor query, Tensor key, Tensor value, Tensor? key_mask",
    option_schema="bool qk_norm, float eps, str order",
    tensors=_Tensors,
    options=_Options,
    alike=3,
    keeps_output=True,
    forward=_forward,
    backward=_backward,
    naive=_naive,
    state_shape=_state_shape,
)


def fused_taylor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    *,
    qk_norm: bool,
    eps: float,
    order: Order,
    path: str,
) -> Tensor:
    """:func:`castling.ops.exact_taylor.exact_taylor` as one operator; arguments as there."""
    return _operator(_Tensors(query, key, value, key_mask), _Options(qk_norm, eps, order), path)


def _macs(
    query: Any, key: Any, value: Any, mask: Any, qk_norm: bool, eps: float, order: str,
    *_: Any, **__: Any,
) -> int:  # fmt: skip
    """What the naive formula in the same order is counted."""
    batch, queries, heads, dim = query
    keys, value_dim = value[1], value[3]
    if order == "direct" or (order == "auto" and direct_is_cheaper(queries, keys, dim, value_dim)):
        return int(batch * heads * queries * keys * (dim + value_dim))
    features = 1 + dim + dim * (dim + 1) // 2
    return int(batch * heads * features * ((queries + keys) * value_dim + queries))


register_macs(_operator.operator(), _macs)
