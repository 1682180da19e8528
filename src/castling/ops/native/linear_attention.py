"""Linear attention in C++: :func:`castling.ops.linear_attention.linear_attention`'s formula.

Signatures are those of every backend (:class:`castling.ops.operators.FusedOperator`). Tensors may
have any strides; results are contiguous.
"""

from __future__ import annotations

import functools
from numbers import Real

import torch
from torch import Tensor, empty, float32, get_num_threads

from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.local import check_local
from castling.ops.native.arguments import (
    DTYPES,
    LINEAR,
    LINEAR_FORMULA,
    LINEAR_GRADIENTS,
    LINEAR_OPTIONAL,
    dtype_code,
    numbers,
)
from castling.ops.native.library import check, function
from castling.ops.native.structures import packer

_FEATURES = numbers("Features")
_NORMALISATIONS = numbers("Normalisation")
_LOCAL_KINDS = numbers("LocalKind")
_NO_MASK = (0, 0, 0)
_NO_STATE = empty(0, dtype=float32, device="cpu")

_pack_arguments = packer(LINEAR.members)
_pack_formula = packer(LINEAR_FORMULA.fields)
_pack_optional = packer(LINEAR_OPTIONAL.fields)
_pack_gradients = packer(LINEAR_GRADIENTS.fields)

_forward = function("linear_attention_forward")
_backward = function("linear_attention_backward")


def linear_attention_forward(
    tensors: LinearTensors, options: LinearOptions, save_state: bool
) -> tuple[Tensor, Tensor]:
    """Output (B, N_q, H, d_v), and the state that the gradient needs.

    Args:
        tensors: of one precision, float32, bfloat16 or float16; any strides.
        options: the formula.
        save_state: return the state; otherwise it is empty.

    Returns:
        Output in the precision of the value and float32 state (B, H, d·d_v + d + d_v) or (0,).

    Raises:
        ValueError: precisions differ or are not supported; unknown feature map or normalisation; a
            convolution of even size.
    """
    batch, queries, heads, dim = tensors.query.shape
    value = tensors.value
    value_dim = value.shape[3]
    # Sizes as separate arguments: PyTorch parses a tuple in twice the time.
    out = value.new_empty(batch, queries, heads, value_dim)
    state = _NO_STATE
    if save_state:
        size = dim * value_dim + dim + value_dim
        state = value.new_empty(batch, heads, size, dtype=float32)
    weight = _weight(tensors.local_weight)
    code = _forward(_pack(tensors, options, weight, state, out, b""))
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
        Contiguous tensors in the shape and precision of their inputs; None for absent ones.

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
    gradients = _pack_gradients(
        d_query=d_query,
        d_key=d_key,
        d_value=d_value,
        d_residual=d_residual,
        d_local_weight=0 if d_weight is None else d_weight.data_ptr(),
        d_constant=d_constant.data_ptr(),
    )
    state = state.contiguous()  # must live until the library has read it
    check(_backward(_pack(tensors, options, weight, state, grad_out, gradients)))
    d_scalar = None
    if scalar is not None:
        d_scalar = (2 * scalar.float() * d_constant).to(scalar.dtype)
    if d_weight is not None and local_weight is not None:
        d_weight = d_weight.to(local_weight.dtype)
    return d_query, d_key, d_value, d_residual, d_weight, d_scalar


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
    gradients: bytes,
) -> bytes:
    """The packed LinearArguments; backward ``out`` is the output's gradient."""
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
    optional = b""
    if residual is not None or key_mask is not None:
        if residual is not None:
            dtype_code(value, residual)
        mask = _NO_MASK if key_mask is None else (key_mask.data_ptr(), *key_mask.stride())
        optional = _pack_optional(
            residual=residual, key_mask=mask[0], mask_batch=mask[1], mask_token=mask[2]
        )
    alpha = options.alpha
    return _pack_arguments(
        query=query,
        key=key,
        value=value,
        out=out,
        local_weight=0 if weight is None else weight.data_ptr(),
        state=state.data_ptr(),
        threads=get_num_threads(),
        constant=alpha if scalar is None else alpha + float(scalar) ** 2,
        formula=formula,
        optional=optional,
        gradients=gradients,
    )


@functools.lru_cache(maxsize=256)
def _formula(
    query: tuple[int, ...],
    value: tuple[int, ...],
    weight: tuple[int, ...] | None,
    dtype: torch.dtype,
    options: LinearOptions,
) -> bytes:
    """The block of sizes and formula: checked and packed once for all calls of a module.

    Args:
        query: shape.
        value: shape.
        weight: shape of the local weight.
        dtype: of the tensors.
        options: the formula.
    """
    if not all(isinstance(number, Real) for number in options[2:-2]):
        raise TypeError("a tensor's value may change, the cached block would not")
    if dtype not in DTYPES:
        raise ValueError(
            "the native operators take float32, bfloat16 and float16, got "
            f"{str(dtype).removeprefix('torch.')}: convert it, or use the naive backend"
        )
    feature_map = _FEATURES.get(options.features)
    normalisation = _NORMALISATIONS.get(options.normalize)
    if feature_map is None or normalisation is None:
        raise ValueError(
            f"features is one of {', '.join(_FEATURES)} and normalize one of "
            f"{', '.join(_NORMALISATIONS)}; got {options.features!r} and {options.normalize!r}"
        )
    kind, taps, height, width, prefix = "no_local", 0, 0, 0, 0
    if weight is not None:
        check_local(weight, value, options.grid, options.prefix)
        kind, taps = "along_tokens", weight[2]
        if options.grid:
            kind, prefix = "on_grid", options.prefix
            height, width = options.grid
    return _pack_formula(
        batch=query[0],
        queries=query[1],
        keys=value[1],
        heads=query[2],
        dim=query[3],
        value_dim=value[3],
        dtype=DTYPES[dtype],
        features=feature_map,
        normalize=normalisation,
        local=_LOCAL_KINDS[kind],
        taps=taps,
        height=height,
        width=width,
        prefix=prefix,
        identity=options.identity,
        gamma=options.gamma,
        kv_scale=options.kv_scale,
        eps=options.eps,
        row_eps=options.row_eps,
    )
