"""Linear attention with elementwise feature maps: one formula behind seven kernels.

With φ(x) of as many channels as x, A = Σ_j φ(k_j) v_jᵀ, z = Σ_j φ(k_j), m = Σ_j v_j and N keys,

    x_i = ι·r_i + s·(γ·φ(q_i)ᵀA + a·m),    y_i = normalise(x_i),    out_i = y_i + conv(v)_i.

Linear-angular, cosine, ReLU, mean, first-order Taylor, sigmoid-softmax and the released quadratic
Taylor attention are choices of φ, ι, s, γ, a and the normalisation. What is written here in basic
operators is the reference; the fused paths (:mod:`castling.ops.paths`) compute the same in one
operator, each tensor touched once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from castling.ops.common import check_qkv
from castling.ops.fused_linear_attention import fused_linear_attention
from castling.ops.local import LocalResidual, check_local
from castling.ops.naive_linear_attention import (
    Features,
    KeyValueScale,
    Normalisation,
    naive_linear_attention,
)
from castling.ops.paths import select_path


def linear_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    features: Features,
    normalize: Normalisation,
    identity: float = 0.0,
    gamma: float = 1.0,
    alpha: float = 0.0,
    scalar: Tensor | None = None,
    kv_scale: KeyValueScale = "tokens",
    eps: float = 1e-6,
    row_eps: float = 0.0,
    key_mask: Tensor | None = None,
    residual: Tensor | None = None,
    local: LocalResidual | None = None,
) -> Tensor:
    """The module's formula on the chosen path; O(N·d·d_v).

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        features: φ: ``"unit"`` x/√(‖x‖² + eps); ``"relu"``; ``"squares"``
            (:func:`castling.ops.naive_linear_attention.squared_directions`); ``"identity"``.
        normalize: ``"l2"`` divides each row by its Euclidean norm; ``"rowsum"`` by
            s·(γ·⟨φ(q_i), z⟩ + a·N) + row_eps (rows without any weight become zero); ``"none"``.
        identity: ι, times the residual, or times the value at the query where there is none.
        gamma: γ.
        alpha: a, to which ``scalar``² is added.
        scalar: 0-dim, learnable.
        kv_scale: s, a positive number or ``"tokens"`` for 1/N.
        eps: under the root of every norm.
        row_eps: added to a row sum.
        key_mask: (B, N_k) boolean, True where a key takes part; other keys and values count as 0.
        residual: r, (B, N_q, H, d_v); None takes the values, which needs N_q = N_k.
        local: convolution of the values added after normalisation; needs N_q = N_k.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``; sums and norms are float32 or better.

    Raises:
        ValueError: shapes disagree.
        PathError: the forced path cannot serve this input.
    """
    check_qkv(query, key, value, key_mask)
    _check_positions(query, value, identity, residual, local)
    path = select_path(query, value)
    if path in ("native", "triton"):
        return fused_linear_attention(
            query,
            key,
            value,
            residual,
            local,
            key_mask,
            scalar,
            features=features,
            normalize=normalize,
            identity=identity,
            gamma=gamma,
            alpha=alpha,
            kv_scale=0.0 if kv_scale == "tokens" else kv_scale,
            eps=eps,
            row_eps=row_eps,
            path=path,
        )
    formula = _compiled() if path == "compiled" else naive_linear_attention
    return formula(
        query,
        key,
        value,
        features=features,
        normalize=normalize,
        identity=identity,
        gamma=gamma,
        alpha=alpha,
        scalar=scalar,
        kv_scale=kv_scale,
        eps=eps,
        row_eps=row_eps,
        key_mask=key_mask,
        residual=residual,
        local=local,
    )


def _check_positions(
    query: Tensor,
    value: Tensor,
    identity: float,
    residual: Tensor | None,
    local: LocalResidual | None,
) -> None:
    queries = query.shape[1]
    if residual is not None:
        expected = (*query.shape[:3], value.shape[-1])
        if tuple(residual.shape) != tuple(expected):
            raise ValueError(
                "the value at each query must have one row per query, (batch, queries, heads, "
                f"value channels) = {tuple(expected)}; got {tuple(residual.shape)}"
            )
    elif identity and queries != value.shape[1]:
        raise ValueError(
            f"the identity term needs one value per query, got {value.shape[1]} values for "
            f"{queries} queries: pass the values at the queries, or leave the term out"
        )
    if local is not None and queries != value.shape[1]:
        raise ValueError(
            f"a local residual stands at the keys: {queries} queries do not match "
            f"{value.shape[1]} keys"
        )
    if local is not None:
        check_local(value, local)


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    compiled: Callable[..., Tensor] = torch.compile(naive_linear_attention)
    return compiled
