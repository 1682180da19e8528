"""The fused linear attention as PyTorch sees it: ``castling::linear_attention``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from castling.ops.local import LocalResidual
from castling.ops.macs import register_macs
from castling.ops.naive_linear_attention import naive_linear_attention
from castling.ops.operators import (
    call,
    differentiating,
    library,
    naive_gradients,
    one_precision,
    register,
)
from castling.ops.paths import backend_for

_LINEAR_TENSORS = (
    "Tensor query, Tensor key, Tensor value, Tensor? residual, Tensor? local_weight, "
    "Tensor? key_mask, Tensor? scalar"
)
_LINEAR_OPTIONS = (
    "str features, str normalize, float identity, float gamma, float alpha, float kv_scale, "
    "float eps, float row_eps, SymInt[] grid, int prefix, str path"
)
library.define(
    f"linear_attention({_LINEAR_TENSORS}, {_LINEAR_OPTIONS}, bool save_state) -> (Tensor, Tensor)"
)
library.define(
    f"linear_attention_backward(Tensor grad, {_LINEAR_TENSORS}, Tensor state, {_LINEAR_OPTIONS}) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)


def fused_linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor | None,
    local: LocalResidual | None,
    key_mask: Tensor | None,
    scalar: Tensor | None,
    *,
    features: str,
    normalize: str,
    identity: float,
    gamma: float,
    alpha: float,
    kv_scale: float,
    eps: float,
    row_eps: float,
    path: str,
) -> Tensor:
    """:func:`castling.ops.linear_attention.linear_attention` as one operator.

    Arguments as there, with ``kv_scale`` 0 for 1/N and ``path`` the backend; shapes are checked
    there.
    """
    dtype = value.dtype
    q, k, v = one_precision(query, key, value)
    weight, grid, prefix = None, [], 0
    if local is not None:
        weight, prefix = local.weight, local.num_prefix_tokens
        grid = [] if local.grid is None else list(local.grid)
    out = call(
        torch.ops.castling.linear_attention.default,
        "linear_attention_forward",
        differentiating(q, k, v, residual, weight, scalar),
        *(q, k, v, None if residual is None else residual.to(v.dtype), weight, key_mask, scalar),
        *(features, normalize, identity, gamma, alpha, kv_scale, eps, row_eps),
        *(grid, prefix, path),
    )
    return out if out.dtype == dtype else out.to(dtype)


def _naive(tensors: tuple[Tensor | None, ...], options: tuple[Any, ...]) -> Tensor:
    query, key, value, residual, weight, key_mask, scalar = tensors
    features, normalize, identity, gamma, alpha, kv_scale, eps, row_eps, grid, prefix, _ = options
    assert query is not None
    assert key is not None
    assert value is not None
    local = None
    if weight is not None:
        local = LocalResidual(weight, (grid[0], grid[1]) if grid else None, prefix)
    return naive_linear_attention(
        query,
        key,
        value,
        features=features,
        normalize=normalize,
        identity=identity,
        gamma=gamma,
        alpha=alpha,
        scalar=scalar,
        kv_scale=kv_scale or "tokens",
        eps=eps,
        row_eps=row_eps,
        key_mask=key_mask,
        residual=residual,
        local=local,
    )


def _state_shape(query: Tensor, value: Tensor, save_state: bool) -> tuple[Any, ...]:
    dim, value_dim = query.shape[-1], value.shape[-1]
    if not save_state:
        return (0,)
    return (query.shape[0], query.shape[2], dim * value_dim + dim + value_dim)


def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor]:
    query, value, save_state = arguments[0], arguments[2], arguments[-1]
    out = value.new_empty((*query.shape[:3], value.shape[-1]))
    shape = _state_shape(query, value, save_state)
    return out, value.new_empty(shape, dtype=torch.float32)


def _naive_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    query, value = arguments[0], arguments[2]
    out = _naive(arguments[:7], arguments[7:18]).contiguous()
    shape = _state_shape(query, value, arguments[18])
    return out, query.new_zeros(shape, dtype=torch.float32)


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *before, path, save_state = arguments
    backend = backend_for(path, arguments[0])
    if backend is None:
        return _naive_forward(*arguments)
    result: tuple[Tensor, Tensor] = backend.linear_attention_forward(*before, save_state)
    return result


def _backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    tensors, state, options = arguments[:7], arguments[7], arguments[8:]
    backend = backend_for(options[-1], grad)
    if backend is not None:
        found = backend.linear_attention_backward(grad, *tensors, state, *options[:-1])
        gradients = list(found)
    else:
        gradients = naive_gradients(
            lambda leaves: _naive(leaves, options), grad, tensors, without=5
        )
    # An operator returns tensors only; what has no gradient is empty here and None outside.
    return tuple(grad.new_empty(0) if g is None else g for g in gradients)


def _backward_fake(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    query, key, value, residual, weight, _, scalar = arguments[:7]
    return tuple(
        grad.new_empty(0) if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in (query, key, value, residual, weight, scalar)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:7], output[1])
    ctx.options = inputs[7:18]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: Any) -> tuple[Any, ...]:
    if grad is None:
        return (None,) * 19
    query, key, value, residual, weight, key_mask, scalar, state = ctx.saved_tensors
    tensors = (query, key, value, residual, weight, key_mask, scalar)
    found = torch.ops.castling.linear_attention_backward.default(
        grad, *tensors, state, *ctx.options
    )
    *front, d_scalar = (
        gradient if tensor is not None else None
        for gradient, tensor in zip(
            found, (query, key, value, residual, weight, scalar), strict=True
        )
    )
    return (*front, None, d_scalar, *(None,) * 12)


register(
    "linear_attention",
    forward=_forward,
    forward_fake=_forward_fake,
    backward=_backward,
    backward_fake=_backward_fake,
    setup=_setup,
    gradient=_gradient,
    naive=_naive_forward,
)


def _macs(
    query: Any, key: Any, value: Any, residual: Any, weight: Any, mask: Any, scalar: Any,
    features: str, normalize: str, *rest: Any, **_: Any,
) -> int:  # fmt: skip
    """State and its reading by the queries, row sums, taps: what the naive formula is counted."""
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


register_macs(torch.ops.castling.linear_attention, _macs)
