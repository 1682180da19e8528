"""Linear attention in C++: :func:`castling.ops.linear_attention.linear_attention`'s formula.

Signatures are those of every backend (:mod:`castling.ops.fused_linear_attention`); the tensors
may have any strides, results are contiguous.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import torch
from torch import Tensor, empty, float32, get_num_threads

from castling.ops.native.arguments import DTYPES, dtype_code, packed
from castling.ops.native.library import check, function

_FEATURES = {"unit": 0, "relu": 1, "squares": 2, "identity": 3}
_NORMALISATIONS = {"none": 0, "l2": 1, "rowsum": 2}
_LAYOUT = struct.Struct("=45q 3q 4q 7q 2q 5q q 6d")
_Options = tuple[
    str, str, float, float, float, float, float, float, Sequence[int], int
]  # features … prefix
_NO_MASK = (0, 0, 0)
_NO_GRADIENTS = (0,) * 20
_NO_LOCAL = (0, 0, 0, 0, 0)
_NO_STATE = empty(0, dtype=float32, device="cpu")

_forward = function("linear_attention_forward")
_backward = function("linear_attention_backward")


def linear_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor | None,
    local_weight: Tensor | None,
    key_mask: Tensor | None,
    scalar: Tensor | None,
    features: str,
    normalize: str,
    identity: float,
    gamma: float,
    alpha: float,
    kv_scale: float,
    eps: float,
    row_eps: float,
    grid: Sequence[int],
    prefix: int,
    save_state: bool,
) -> tuple[Tensor, Tensor]:
    """Output (B, N_q, H, d_v), and the state the gradient needs.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        residual: (B, N_q, H, d_v) or None.
        local_weight: (H, 1, taps, 1) without a grid, (H·d_v, 1, k, k) on one; odd sizes.
        key_mask: (B, N_k) boolean or None.
        scalar: 0-dim or None.
        features: ``"unit"``, ``"relu"``, ``"squares"`` or ``"identity"``.
        normalize: ``"none"``, ``"l2"`` or ``"rowsum"``.
        identity: weight of the residual, or of the value at the query where there is none.
        gamma: weight of the products.
        alpha: constant similarity, to which scalar² is added.
        kv_scale: s; 0 for one over the number of keys.
        eps: under the root of norms.
        row_eps: added to row sums.
        grid: (h, w) or empty.
        prefix: tokens in front of the grid.
        save_state: whether to return the state; else it is empty.

    Returns:
        Output in the precision of ``value`` and float32 state (B, H, d·d_v + d + d_v) or (0,).

    Raises:
        ValueError: precisions differ or are not the library's; unknown feature map or
            normalisation; a kernel of even size.
    """
    batch, queries, heads, dim = query.shape
    value_dim = value.shape[3]
    # Sizes one by one: reading them from a tuple takes PyTorch twice as long.
    out = value.new_empty(batch, queries, heads, value_dim)
    state = _NO_STATE
    if save_state:
        size = dim * value_dim + dim + value_dim
        state = value.new_empty(batch, heads, size, dtype=float32)
    weight = _weight(local_weight)
    arguments = _pack(
        *(query, key, value, residual, out, (), weight, None, key_mask, scalar, state, None),
        (features, normalize, identity, gamma, alpha, kv_scale, eps, row_eps, grid, prefix),
    )
    code = _forward(arguments)
    if code:
        check(code)
    return out, state


def linear_attention_backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor | None,
    local_weight: Tensor | None,
    key_mask: Tensor | None,
    scalar: Tensor | None,
    state: Tensor,
    features: str,
    normalize: str,
    identity: float,
    gamma: float,
    alpha: float,
    kv_scale: float,
    eps: float,
    row_eps: float,
    grid: Sequence[int],
    prefix: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of query, key, value, residual, local weight and scalar.

    Args:
        grad_out: (B, N_q, H, d_v), the gradient of the output.
        query: as in :func:`linear_attention_forward`, like all that is not named here.
        key: as there.
        value: as there.
        residual: as there.
        local_weight: as there.
        key_mask: as there.
        scalar: as there.
        state: what the forward pass saved.
        features: as there.
        normalize: as there.
        identity: as there.
        gamma: as there.
        alpha: as there.
        kv_scale: as there.
        eps: as there.
        row_eps: as there.
        grid: as there.
        prefix: as there.

    Returns:
        Contiguous tensors in shape and precision of what they belong to; None where that is None.

    Raises:
        ValueError: as in the forward pass; or the state was not saved.
    """
    if state.numel() == 0 and query.numel() and key.numel():
        raise ValueError("the gradient needs the forward pass's state: call it with save_state")
    contiguous = torch.contiguous_format
    d_query, d_key, d_value = (
        torch.empty_like(tensor, memory_format=contiguous) for tensor in (query, key, value)
    )
    d_residual = None if residual is None else torch.empty_like(residual, memory_format=contiguous)
    weight, state = _weight(local_weight), state.contiguous()
    d_weight = None if weight is None else torch.empty_like(weight)
    d_constant = value.new_empty((), dtype=float32)
    arguments = _pack(
        *(query, key, value, residual, grad_out, (d_query, d_key, d_value, d_residual)),
        *(weight, d_weight, key_mask, scalar, state, d_constant),
        (features, normalize, identity, gamma, alpha, kv_scale, eps, row_eps, grid, prefix),
    )
    check(_backward(arguments))
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
    query: Tensor,
    key: Tensor,
    value: Tensor,
    residual: Tensor | None,
    out: Tensor,
    gradients: tuple[Tensor | None, ...],
    weight: Tensor | None,
    d_weight: Tensor | None,
    key_mask: Tensor | None,
    scalar: Tensor | None,
    state: Tensor,
    d_constant: Tensor | None,
    options: _Options,
) -> bytes:
    """The C structure LinearArguments."""
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
    value_shape = value.shape
    return _LAYOUT.pack(
        *(query.data_ptr(), *query.stride(), key.data_ptr(), *key.stride()),
        *(value.data_ptr(), *value.stride(), *packed(residual), out.data_ptr(), *out.stride()),
        *(_NO_GRADIENTS if not gradients else [n for g in gradients for n in packed(g)]),
        *(_NO_MASK if key_mask is None else (key_mask.data_ptr(), *key_mask.stride())),
        *(
            0 if weight is None else weight.data_ptr(),
            0 if d_weight is None else d_weight.data_ptr(),
        ),
        *(state.data_ptr(), 0 if d_constant is None else d_constant.data_ptr()),
        *(batch, queries, value_shape[1], heads, dim, value_shape[3], dtype),
        *(feature_map, normalisation, *_local(weight, heads, value, grid, prefix)),
        *(get_num_threads(), identity, gamma, constant, kv_scale, eps, row_eps),
    )


def _local(
    weight: Tensor | None, heads: int, value: Tensor, grid: Sequence[int], prefix: int
) -> tuple[int, ...]:
    """Kind, taps, height, width and prefix of the local convolution."""
    if weight is None:
        return _NO_LOCAL
    taps = weight.shape[2]
    expected = (heads * value.shape[3], 1, taps, taps) if len(grid) else (heads, 1, taps, 1)
    if taps % 2 == 0 or weight.shape != expected:
        raise ValueError(
            f"the local weight must be {expected} with an odd number of taps, got "
            f"{tuple(weight.shape)}"
        )
    if not len(grid):
        return 1, taps, 0, 0, 0
    height, width = grid
    if height * width + prefix != value.shape[1]:
        raise ValueError(
            f"grid {height}×{width} with {prefix} prefix tokens does not make "
            f"{value.shape[1]} tokens"
        )
    return 2, taps, height, width, prefix
