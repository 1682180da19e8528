"""Linear attention in C++: :func:`castling.ops.linear_attention.linear_attention`'s formula.

Signatures are those of every backend (:class:`castling.ops.operators.FusedOperator`); the tensors
may have any strides, results are contiguous.
"""

from __future__ import annotations

import functools
import struct
from numbers import Real
from typing import NamedTuple

import torch
from torch import Tensor, empty, float32, get_num_threads

from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.local import check_local
from castling.ops.native.arguments import DTYPES, dtype_code, packed
from castling.ops.native.library import check, function

_FEATURES = {"unit": 0, "relu": 1, "squares": 2, "identity": 3}
_NORMALISATIONS = {"none": 0, "l2": 1, "rowsum": 2}
# The parts of the C structure LinearArguments, in their order.
_CALL = struct.Struct("=20q 3q d")
_FORMULA = struct.Struct("=14q 5d")
_SELDOM = struct.Struct("=5q 3q")
_BACKWARD = struct.Struct("=20q 2q")
_NO_MASK = (0, 0, 0)
_NO_LOCAL = (0, 0, 0, 0, 0)
_NEITHER = bytes(_SELDOM.size + _BACKWARD.size)
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
    state = state.contiguous()  # kept until the library has read it
    check(_backward(_pack(tensors, options, weight, state, grad_out, gradients)))
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
    dtype = query.dtype
    if not dtype == key.dtype == value.dtype == out.dtype:
        dtype_code(query, key, value, out)
    shape = None if weight is None else weight.shape
    try:
        formula = _formula(query.shape, value.shape, shape, dtype, options)
    except TypeError as error:
        raise TypeError(
            f"options of attention are names, plain numbers and tuples of them, got {options}"
        ) from error
    alpha = options.alpha
    call = _CALL.pack(
        *(query.data_ptr(), *query.stride(), key.data_ptr(), *key.stride()),
        *(value.data_ptr(), *value.stride(), out.data_ptr(), *out.stride()),
        *(0 if weight is None else weight.data_ptr(), state.data_ptr(), get_num_threads()),
        alpha if scalar is None else alpha + float(scalar) ** 2,
    )
    if residual is None and key_mask is None and gradients is None:
        return call + formula + _NEITHER
    if residual is not None:
        dtype_code(value, residual)
    mask = _NO_MASK if key_mask is None else (key_mask.data_ptr(), *key_mask.stride())
    seldom = _SELDOM.pack(*packed(residual), *mask)
    if gradients is None:
        return call + formula + seldom + _NEITHER[_SELDOM.size :]
    results = (number for each in gradients[:4] for number in packed(each))
    d_weight = 0 if gradients.weight is None else gradients.weight.data_ptr()
    return call + formula + seldom + _BACKWARD.pack(
        *results, d_weight, gradients.constant.data_ptr()
    )  # fmt: skip


@functools.lru_cache(maxsize=256)
def _formula(
    query: tuple[int, ...],
    value: tuple[int, ...],
    weight: tuple[int, ...] | None,
    dtype: torch.dtype,
    options: LinearOptions,
) -> bytes:
    """What is the same for a module's calls, checked and packed once: sizes and formula.

    Args:
        query: shape.
        value: shape.
        weight: shape of the local weight.
        dtype: of the tensors.
        options: the formula.
    """
    features, normalize, *numbers, grid, prefix = options
    if not all(isinstance(number, Real) for number in numbers):
        raise TypeError("a tensor may change, what is kept would not")
    identity, gamma, _, kv_scale, eps, row_eps = numbers
    if dtype not in DTYPES:
        raise ValueError(
            "the native operators take float32, bfloat16 and float16, got "
            f"{str(dtype).removeprefix('torch.')}: convert it, or use the naive path"
        )
    feature_map, normalisation = _FEATURES.get(features), _NORMALISATIONS.get(normalize)
    if feature_map is None or normalisation is None:
        raise ValueError(
            f"features is one of {', '.join(_FEATURES)} and normalize one of "
            f"{', '.join(_NORMALISATIONS)}; got {features!r} and {normalize!r}"
        )
    local: tuple[int, ...] = _NO_LOCAL
    if weight is not None:
        check_local(weight, value, grid, prefix)
        local = (2, weight[2], *grid, prefix) if grid else (1, weight[2], 0, 0, 0)
    batch, queries, heads, dim = query
    return _FORMULA.pack(
        *(batch, queries, value[1], heads, dim, value[3]),
        *(DTYPES[dtype], feature_map, normalisation, *local),
        *(identity, gamma, kv_scale, eps, row_eps),
    )
