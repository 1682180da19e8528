"""Linear attention in C++: :func:`castling.ops.linear_attention.linear_attention`'s formula.

Signatures are those of every backend (:class:`castling.ops.operators.FusedOperator`); the tensors
may have any strides, results are contiguous.
"""

from __future__ import annotations

import functools
import struct
from typing import NamedTuple

from torch import Tensor, empty, float32, get_num_threads

from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.local import check_local
from castling.ops.native.arguments import DTYPES, dtype_code, packed
from castling.ops.native.library import check, function

_FEATURES = {"unit": 0, "relu": 1, "squares": 2, "identity": 3}
_NORMALISATIONS = {"none": 0, "l2": 1, "rowsum": 2}
_LAYOUT = struct.Struct("=45q 3q 4q 7q 2q 5q q 6d")
_NO_MASK = (0, 0, 0)
_NO_GRADIENTS = (0,) * 20
_NO_LOCAL = (0, 0, 0, 0, 0)
_NO_STATE = empty(0, dtype=float32, device="cpu")

_forward = function("linear_attention_forward")
_backward = function("linear_attention_backward")


def linear_attention_forward(
    tensors: LinearTensors, options: LinearOptions, save_state: bool
) -> tuple[Tensor, Tensor]:
    """Output (B, N_q, H, d_v), and the state the gradient needs.

    Args:
        tensors: of one precision, float32, bfloat16 or float16; any strides.
        options: the formula.
        save_state: whether to return the state; else it is empty.

    Returns:
        Output in the precision of the value and float32 state (B, H, d·d_v + d + d_v) or (0,).

    Raises:
        ValueError: precisions differ or are not the library's; unknown feature map or
            normalisation; a kernel of even size.
    """
    batch, queries, heads, dim = tensors.query.shape
    value = tensors.value
    value_dim = value.shape[3]
    # Sizes one by one: reading them from a tuple takes PyTorch twice as long.
    out = value.new_empty(batch, queries, heads, value_dim)
    state = _NO_STATE
    if save_state:
        size = dim * value_dim + dim + value_dim
        state = value.new_empty(batch, heads, size, dtype=float32)
    weight = _weight(tensors.local_weight)
    code = _forward(_pack(tensors, options, weight, state, out))
    if code:
        check(code)
    return out, state


def linear_attention_backward(
    grad_out: Tensor,
    tensors: LinearTensors,
    saved: tuple[Tensor, ...],
    options: LinearOptions,
) -> tuple[Tensor | None, ...]:
    """Gradients of query, key, value, residual, local weight and scalar.

    Args:
        grad_out: (B, N_q, H, d_v), the gradient of the output; any strides.
        tensors: as in the forward pass.
        saved: the state it saved.
        options: as in the forward pass.

    Returns:
        Contiguous tensors in shape and precision of what they belong to; None where that is None.

    Raises:
        ValueError: as in the forward pass; or the state was not saved.
    """
    query, key, value, residual, local_weight, _, scalar = tensors
    (state,) = saved
    if state.numel() == 0 and query.numel() and key.numel():
        raise ValueError("the gradient needs the forward pass's state: call it with save_state")
    weight = _weight(local_weight)
    fresh = (
        None if tensor is None else tensor.new_empty(tensor.shape)
        for tensor in (query, key, value, residual, weight)
    )
    d_query, d_key, d_value, d_residual, d_weight = fresh
    d_constant = value.new_empty((), dtype=float32)
    gradients = _Gradients(d_query, d_key, d_value, d_residual, d_weight, d_constant)
    check(_backward(_pack(tensors, options, weight, state.contiguous(), grad_out, gradients)))
    d_scalar = None
    if scalar is not None:
        d_scalar = (2 * scalar.float() * d_constant).to(scalar.dtype)
    if d_weight is not None and local_weight is not None:
        d_weight = d_weight.to(local_weight.dtype)
    return d_query, d_key, d_value, d_residual, d_weight, d_scalar


class _Gradients(NamedTuple):
    query: Tensor | None
    key: Tensor | None
    value: Tensor | None
    residual: Tensor | None
    weight: Tensor | None
    constant: Tensor


def _weight(local_weight: Tensor | None) -> Tensor | None:
    if local_weight is None:
        return None
    if local_weight.dtype == float32 and local_weight.is_contiguous():
        return local_weight
    return local_weight.detach().to(float32).contiguous()


def _pack(
    tensors: LinearTensors,
    options: LinearOptions,
    weight: Tensor | None,
    state: Tensor,
    out: Tensor,
    gradients: _Gradients | None = None,
) -> bytes:
    """The C structure LinearArguments; backwards ``out`` is the output's gradient."""
    query, key, value, residual, _, key_mask, scalar = tensors
    features, normalize, identity, gamma, alpha, kv_scale, eps, row_eps, grid, prefix = options
    dtype = DTYPES.get(query.dtype, -1)
    if not (query.dtype == key.dtype == value.dtype == out.dtype) or dtype < 0:
        dtype_code(query, key, value, out)
    feature_map, normalisation = _FEATURES.get(features), _NORMALISATIONS.get(normalize)
    if feature_map is None or normalisation is None:
        raise ValueError(
            f"features is one of {', '.join(_FEATURES)} and normalize one of "
            f"{', '.join(_NORMALISATIONS)}; got {features!r} and {normalize!r}"
        )
    if residual is not None:
        dtype_code(value, residual)
    constant = alpha if scalar is None else alpha + float(scalar) ** 2
    batch, queries, heads, dim = query.shape
    _, keys, _, value_dim = value.shape
    results: tuple[int, ...] = _NO_GRADIENTS
    d_weight = d_constant = 0
    if gradients is not None:
        results = tuple(number for each in gradients[:4] for number in packed(each))
        d_weight = 0 if gradients.weight is None else gradients.weight.data_ptr()
        d_constant = gradients.constant.data_ptr()
    return _LAYOUT.pack(
        *(query.data_ptr(), *query.stride(), key.data_ptr(), *key.stride()),
        *(value.data_ptr(), *value.stride(), *packed(residual), out.data_ptr(), *out.stride()),
        *results,
        *(_NO_MASK if key_mask is None else (key_mask.data_ptr(), *key_mask.stride())),
        *(0 if weight is None else weight.data_ptr(), d_weight, state.data_ptr(), d_constant),
        *(batch, queries, keys, heads, dim, value_dim, dtype, feature_map, normalisation),
        *(_NO_LOCAL if weight is None else _local(weight.shape, value.shape, grid, prefix)),
        *(get_num_threads(), identity, gamma, constant, kv_scale, eps, row_eps),
    )


@functools.lru_cache(maxsize=256)
def _local(
    shape: tuple[int, ...], value_shape: tuple[int, ...], grid: tuple[int, ...], prefix: int
) -> tuple[int, ...]:
    """Kind, taps, height, width and prefix of the local convolution; checked once."""
    check_local(shape, value_shape, grid, prefix)
    return (2, shape[2], *grid, prefix) if grid else (1, shape[2], 0, 0, 0)
