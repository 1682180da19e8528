"""The fused exact Taylor attention as PyTorch sees it: ``castling::taylor_attention``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from castling.ops import native, triton
from castling.ops.macs import register_macs
from castling.ops.operators import (
    call,
    differentiating,
    library,
    naive_gradients,
    one_precision,
    register,
)
from castling.ops.paths import backend_for
from castling.ops.quadratic_taylor import direct_is_cheaper, naive_exact_taylor

library.define(
    "taylor_attention(Tensor query, Tensor key, Tensor value, Tensor? key_mask, bool qk_norm, "
    "float eps, str order, str path, bool save_state) -> (Tensor, Tensor)"
)
library.define(
    "taylor_attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, "
    "Tensor? key_mask, Tensor out, Tensor state, bool qk_norm, float eps, str order, str path) "
    "-> (Tensor, Tensor, Tensor)"
)


def fused_taylor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    key_mask: Tensor | None,
    *,
    qk_norm: bool,
    eps: float,
    order: str,
    path: str,
) -> Tensor:
    """:func:`castling.ops.exact_taylor.exact_taylor` as one operator; arguments as there."""
    dtype = value.dtype
    q, k, v = one_precision(query, key, value)
    out = call(
        torch.ops.castling.taylor_attention.default,
        "taylor_forward",
        differentiating(q, k, v),
        *(q, k, v, key_mask, qk_norm, eps, order, path),
    )
    return out if out.dtype == dtype else out.to(dtype)


def _naive(tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]) -> Tensor:
    query, key, value, key_mask = tensors
    qk_norm, eps, order, _ = options
    assert query is not None
    assert key is not None
    assert value is not None
    return naive_exact_taylor(
        query, key, value, qk_norm=qk_norm, order=order, eps=eps, key_mask=key_mask
    )


def _state_shape(arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    query, key, value, _, _, _, order, path, save_state = arguments
    backend = native if path == "native" else triton
    shape: tuple[Any, ...] = backend.taylor_state_shape(
        *(query.shape[0], query.shape[2], query.shape[3], value.shape[3]),
        *(order, query.shape[1], key.shape[1], save_state),
    )
    return shape


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    query, value = arguments[0], arguments[2]
    out = value.new_empty((*query.shape[:3], value.shape[-1]))
    return out, value.new_empty(_state_shape(arguments), dtype=torch.float32)


def _naive_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    out = _naive(arguments[:4], arguments[4:8]).contiguous()
    return out, out.new_zeros(_state_shape(arguments), dtype=torch.float32)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *before, path, save_state = arguments
    backend = backend_for(path, arguments[0])
    if backend is None:
        return _naive_forward(*arguments)
    result: tuple[Tensor, Tensor] = backend.taylor_forward(*before, save_state)
    return result


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    *tensors, out, state, qk_norm, eps, order, path = arguments
    backend = backend_for(path, grad)
    if backend is not None:
        gradients: tuple[Tensor, ...] = backend.taylor_backward(
            grad, *tensors, out, state, qk_norm, eps, order
        )
        return gradients
    options = (qk_norm, eps, order, path)
    found = naive_gradients(lambda leaves: _naive(leaves, options), grad, tuple(tensors), without=3)
    return tuple(gradient for gradient in found[:3] if gradient is not None)


def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return tuple(tensor.new_empty(tensor.shape) for tensor in arguments[:3])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.options = inputs[4:8]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 9
    found = torch.ops.castling.taylor_attention_backward.default(
        grad, *ctx.saved_tensors, *ctx.options
    )
    return (*found, *(None,) * 6)


register(
    "taylor_attention",
    forward=_forward,
    forward_fake=_forward_fake,
    backward=_backward,
    backward_fake=_backward_fake,
    setup=_setup,
    gradient=_gradient,
    naive=_naive_forward,
)


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


register_macs(torch.ops.castling.taylor_attention, _macs)
