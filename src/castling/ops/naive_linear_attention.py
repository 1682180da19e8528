"""Linear attention in basic operators: the reference of :mod:`castling.ops.linear_attention`."""

from __future__ import annotations

from torch import Tensor

from castling.ops.common import (
    apply_state,
    apply_state_and_total,
    autocast_off,
    count_keys,
    mask_tokens,
    normalise_rows,
    state_of,
    upcast,
)
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.local import local_residual
from castling.ops.taylor_features import squared_directions


def _features(x: Tensor, features: str, eps: float) -> Tensor:
    if features == "unit":
        return normalise_rows(x, eps)
    if features == "relu":
        return x.relu()
    return squared_directions(x, eps) if features == "squares" else x


def naive_linear_attention(tensors: LinearTensors, options: LinearOptions) -> Tensor:
    """The formula in basic operators; arguments and result as in :func:`linear_attention`."""
    query, key, value, residual, local_weight, key_mask, scalar = tensors
    gamma, alpha, kv_scale, eps = options.gamma, options.alpha, options.kv_scale, options.eps
    dtype = value.dtype
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        v = mask_tokens(v, key_mask)
        scale = kv_scale or 1.0 / count_keys(k, key_mask)
        # Scaling the keys keeps sums over many tokens in range.
        k = mask_tokens(_features(k, options.features, eps), key_mask) * (scale * gamma)
        q = _features(q, options.features, eps)
        state = state_of(k, v)
        rows: Tensor | None = None
        if options.normalize == "rowsum":
            out, rows = apply_state_and_total(q, state, k.sum(dim=1))
        else:
            out = apply_state(q, state)
        constant: Tensor | float = alpha
        if scalar is not None:
            constant = alpha + scalar.to(v.dtype).square()
        if scalar is not None or alpha:
            out = out + v.sum(dim=1, keepdim=True) * (scale * constant)
        if options.identity:
            out = out + options.identity * (v if residual is None else residual.to(v.dtype))
        if rows is not None:
            number: Tensor | int = key.shape[1]
            if key_mask is not None:
                number = key_mask.sum(dim=1).to(v.dtype)[:, None, None, None]
            rows = rows + scale * constant * number + options.row_eps
            out = out / rows.masked_fill(rows == 0, 1)
        elif options.normalize == "l2":
            out = normalise_rows(out, eps)
        local = options.local(local_weight)
        if local is not None:
            out = out + local_residual(v, local)
        return out.to(dtype)
