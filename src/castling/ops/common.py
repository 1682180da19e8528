"""Numerics shared by every attention operator: accumulation precision, norms, key masks.

Tensors are laid out (B, N, H, d): the strided view of a packed projection, so nothing is copied.
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def accumulation_dtype(tensor: Tensor) -> torch.dtype:
    """The precision of sums and norms: float32, or float64 for float64 input."""
    return torch.promote_types(tensor.dtype, torch.float32)


def upcast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """All tensors in the accumulation precision of the widest; no copy if unchanged."""
    dtype = functools.reduce(torch.promote_types, (x.dtype for x in tensors), torch.float32)
    return tuple(tensor.to(dtype) for tensor in tensors)


def autocast_off(tensor: Tensor) -> AbstractContextManager[object]:
    """Context without autocast on the tensor's device; empty on ``meta``, which has no autocast."""
    if tensor.device.type == "meta":
        return nullcontext()
    return torch.autocast(tensor.device.type, enabled=False)


def normalise_rows(tensor: Tensor, eps: float) -> Tensor:
    """Divide each vector of the last dimension by its Euclidean norm.

    Args:
        tensor: (..., d), already in accumulation precision.
        eps: added under the root, x · rsqrt(Σx² + eps). A row of zeros (a padded token) stays zero,
            and so does its gradient: the exact one, 1/√eps per norm, overflows float16 after two
            norms. ``0`` divides by the plain norm, as the reference code does (zero rows give NaN).
    """
    if eps == 0:
        return tensor / tensor.norm(dim=-1, keepdim=True)
    squares = (tensor * tensor).sum(dim=-1, keepdim=True)
    factors = torch.rsqrt(squares + eps)
    if not torch.onnx.is_in_onnx_export():  # needed by gradients only
        factors = factors.masked_fill(squares == 0, 0)
    return tensor * factors


# Matrix products over heads: inference runtimes compute them much faster than the same einsum.


def scores_of(query: Tensor, key: Tensor) -> Tensor:
    """Inner products: (B, N_q, H, d), (B, N_k, H, d) -> (B, H, N_q, N_k)."""
    return query.transpose(1, 2) @ key.permute(0, 2, 3, 1)


def weighted_values(weights: Tensor, value: Tensor) -> Tensor:
    """Sums over the keys: (B, H, N_q, N_k), (B, N_k, H, d_v) -> (B, N_q, H, d_v)."""
    return (weights @ value.transpose(1, 2)).transpose(1, 2)


def state_of(key: Tensor, value: Tensor) -> Tensor:
    """Σ k vᵀ over the tokens: (B, N, H, d), (B, N, H, d_v) -> (B, H, d, d_v)."""
    return key.permute(0, 2, 3, 1) @ value.transpose(1, 2)


def apply_state(query: Tensor, state: Tensor) -> Tensor:
    """φ(q)·S, the state applied to the queries: (B, N, H, d), (B, H, d, d_v) -> (B, N, H, d_v)."""
    return (query.transpose(1, 2) @ state).transpose(1, 2)


def apply_state_and_total(query: Tensor, state: Tensor, total: Tensor) -> tuple[Tensor, Tensor]:
    """φ(q)·S and φ(q)·z by one product with z as the last column of S.

    Args:
        query: (B, N, H, d).
        state: (B, H, d, d_v).
        total: (B, H, d).

    Returns:
        (B, N, H, d_v) and (B, N, H, 1).
    """
    found = apply_state(query, torch.cat((state, total.unsqueeze(-1)), dim=-1))
    return found[..., :-1], found[..., -1:]


def mask_tokens(tensor: Tensor, key_mask: Tensor | None) -> Tensor:
    """Set the tokens that ``key_mask`` excludes to zero.

    Args:
        tensor: (B, N, H, d).
        key_mask: (B, N) boolean, True where a token takes part; None keeps all.
    """
    if key_mask is None:
        return tensor
    return tensor.masked_fill(~key_mask[:, :, None, None], 0)


def count_keys(key: Tensor, key_mask: Tensor | None) -> Tensor | int:
    """Number of keys that take part, at least 1: int, or (B, 1, 1, 1) in accumulation precision."""
    if key_mask is None:
        keys = key.shape[1]
        return max(keys, 1) if isinstance(keys, int) else keys
    return key_mask.sum(dim=1).clamp(min=1).to(accumulation_dtype(key))[:, None, None, None]


def check_qkv(query: Tensor, key: Tensor, value: Tensor, key_mask: Tensor | None = None) -> None:
    """Raise ValueError unless shapes are (B, N_q, H, d), (B, N_k, H, d) and (B, N_k, H, d_v)."""
    # Shapes are read once: this runs before every attention call.
    queries, keys, values = query.shape, key.shape, value.shape
    if not (len(queries) == len(keys) == len(values) == 4):
        raise ValueError(
            "query, key and value must have four dimensions (batch, tokens, heads, channels); got "
            f"{tuple(queries)}, {tuple(keys)}, {tuple(values)}"
        )
    if queries[0] != keys[0] or queries[2] != keys[2] or queries[3] != keys[3]:
        raise ValueError(
            "query and key must agree in batch, heads and channels; got "
            f"{tuple(queries)} and {tuple(keys)}"
        )
    if keys[0] != values[0] or keys[1] != values[1] or keys[2] != values[2]:
        raise ValueError(
            "key and value must agree in batch, tokens and heads; got "
            f"{tuple(keys)} and {tuple(values)}"
        )
    if key_mask is not None and (key_mask.shape != key.shape[:2] or key_mask.dtype != torch.bool):
        raise ValueError(
            f"key_mask must be boolean of shape {tuple(key.shape[:2])} (True = token takes part); "
            f"got {key_mask.dtype} of shape {tuple(key_mask.shape)}"
        )
