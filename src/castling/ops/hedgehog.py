"""Hedgehog attention: a learned exponential feature map that imitates softmax.

φ(x) = [exp(u), exp(−u)] with u = Wx + b, one W and b for each head (Zhang et al., "The Hedgehog &
the Porcupine", ICLR 2024, arXiv 2402.04347). Plain exponentials overflow float16 at u = 11, so two
forms are given, both computed in float32 or better.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from castling.ops.common import autocast_off, check_qkv, mask_tokens, upcast
from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors

Activation = Literal["softmax", "exp"]


#: ε of plain exponentials, against which similarities of 1e-17 of the largest are still exact.
_EXP_EPS = 1e-24


def project_heads(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """W_h x + b_h in each head: (B, N, H, d), (H, D, d), (H, D) -> (B, N, H, D)."""
    projected = (x.transpose(1, 2) @ weight.to(x.dtype).transpose(1, 2)).transpose(1, 2)
    return projected + bias.to(x.dtype)


def hedgehog_features(u: Tensor, activation: Activation, *, over_tokens: bool = False) -> Tensor:
    """[exp(u), exp(−u)] divided by a constant: (B, N, H, d) -> (B, N, H, 2·d).

    Args:
        u: projected queries or keys in accumulation precision.
        activation: ``"softmax"`` divides by the sum over the 2·d features of each token; ``"exp"``
            by the largest feature, of each token or, ``over_tokens``, of each head.
        over_tokens: share the divisor of ``"exp"`` between the tokens of a head.
    """
    both = torch.cat((u, -u), dim=-1)
    if activation == "softmax":
        return both.softmax(dim=-1)
    largest = both.detach().amax(dim=(1, 3) if over_tokens else 3, keepdim=True)
    return (both - largest).exp()


def hedgehog(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_map: tuple[Tensor, Tensor],
    key_map: tuple[Tensor, Tensor],
    *,
    activation: Activation = "softmax",
    eps: float = 1e-9,
    key_mask: Tensor | None = None,
) -> Tensor:
    """Σ_j ⟨φ_q(q_i), φ_k(k_j)⟩ v_j / Σ_j ⟨φ_q(q_i), φ_k(k_j)⟩ in O(N·d·d_v).

    The divisor of a query's features cancels in the ratio. So does that of ``"exp"`` keys, which
    all keys of a head share: the result is that of plain exponentials, without their overflow.
    ``"softmax"`` keys are weighed by 1/Σ over their own features instead, which bounds every key's
    influence.

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        query_map: W (H, d, d) and b (H, d) of the queries.
        key_map: the same of the keys.
        activation: ``"softmax"`` or ``"exp"``, see :func:`hedgehog_features`.
        eps: added to the mean of a row of similarities; at most 1e-24 with ``"exp"``.
        key_mask: (B, N_k) boolean, True where a key takes part.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``.

    Raises:
        ValueError: shapes disagree.
    """
    check_qkv(query, key, value, key_mask)
    if key.shape[1] == 0:
        return value.new_zeros(*query.shape[:3], value.shape[-1])
    if activation == "exp":
        # Similarities are relative to the largest feature of query and keys: nearly all of them
        # can be small, and must stay large against ε.
        eps = min(eps, _EXP_EPS)
    with autocast_off(value):
        q, k, v = upcast(query, key, value)
        # Masked before the exponential, whose gradient at a padded NaN would be NaN.
        k = mask_tokens(k, key_mask)
        features = LinearTensors(
            hedgehog_features(project_heads(q, *query_map), activation),
            hedgehog_features(project_heads(k, *key_map), activation, over_tokens=True),
            v,
            key_mask=key_mask,
        )
        out = linear_attention(features, LinearOptions("identity", "rowsum", row_eps=eps))
        return out.to(value.dtype)
