"""Linear-angular attention and the exact angular kernel it comes from.

Sim(q, k) = 1 − θ/π with θ = arccos⟨q̂, k̂⟩; its first two terms ½ + ⟨q̂, k̂⟩/π are linear-angular
attention (You et al., Castling-ViT, CVPR 2023, arXiv 2211.10526, §3.2).
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from castling.ops.common import (
    autocast_off,
    check_qkv,
    count_keys,
    mask_tokens,
    normalise_rows,
    scores_of,
    upcast,
    weighted_values,
)
from castling.ops.linear_attention import linear_attention
from castling.ops.linear_inputs import (
    KeyValueScale,
    LinearOptions,
    LinearTensors,
    Normalisation,
    scale_number,
)
from castling.ops.local import LocalResidual

Constant = Literal["identity", "mean", "none"]


def angular_formula(
    constant: Constant, normalize: Normalisation, kv_scale: KeyValueScale, eps: float
) -> LinearOptions:
    """The formula of :func:`linear_angular` with these arguments, checked.

    Raises:
        ValueError: an unknown name; ``rowsum`` without the exact constant; ``kv_scale`` is not
            positive; ``eps`` is negative.
    """
    if constant not in get_args(Constant) or normalize not in get_args(Normalisation):
        raise ValueError(
            f"constant is one of {', '.join(get_args(Constant))} and normalize one of "
            f"{', '.join(get_args(Normalisation))}; got {constant!r} and {normalize!r}"
        )
    if not eps >= 0:
        raise ValueError(f"eps is added under roots and cannot be negative, got {eps}")
    if normalize == "rowsum" and constant != "mean":
        raise ValueError('normalize="rowsum" needs constant="mean": other row sums may cross zero')
    return LinearOptions(
        features="unit",
        normalize=normalize,
        identity=0.5 if constant == "identity" else 0.0,
        gamma=1 / math.pi,
        alpha=0.5 if constant == "mean" else 0.0,
        kv_scale=scale_number(kv_scale),
        eps=eps,
    )


def linear_angular(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    constant: Constant = "identity",
    normalize: Normalisation = "l2",
    kv_scale: KeyValueScale = 1.0,
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    query_value: Tensor | None = None,
    auxiliary_output: Tensor | None = None,
    local: LocalResidual | None = None,
) -> Tensor:
    """y_i = constant_i + (s/π) q̂_i (Σ_j k̂_j v_jᵀ) [+ extra_i], then normalised; O(N·d·d_v).

    Args:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        constant: ``"identity"`` ½·v_i, as in the published code and figure (needs a value for each
            query: N_q = N_k, or ``query_value``); ``"mean"`` (s/2)·Σ_j v_j, the exact kernel;
            ``"none"``.
        normalize: ``"l2"`` divides each head's row by its Euclidean norm, as published;
            ``"rowsum"`` divides by Σ_j Sim(q_i, k_j) > 0.18·N (only with ``constant="mean"``:
            otherwise the sum may cross zero); ``"none"``.
        kv_scale: s above: a number (1 as published) or ``"tokens"`` for 1/N_k.
        eps: under the root of every norm; 0 reproduces the reference (zero rows give NaN).
        key_mask: (B, N_k) boolean, True where a key takes part.
        query_value: (B, N_q, H, d_v), the value of each query when N_q ≠ N_k.
        auxiliary_output: (B, N_q, H, d_v), added before an L2 normalisation and after a row-sum
            one, so that it is always added to attention of the same magnitude.
        local: convolution of the values added last; needs N_q = N_k.

    Returns:
        (B, N_q, H, d_v) in the dtype of ``value``; sums and norms are float32 or better.

    Raises:
        ValueError: shapes disagree; ``identity`` without a value for each query; as
            :func:`angular_formula`.
        BackendError: the forced backend cannot run on this input.
    """
    formula = angular_formula(constant, normalize, kv_scale, eps)
    return angular_attention(
        query, key, value, formula, key_mask, query_value, auxiliary_output, local
    )


def angular_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    formula: LinearOptions,
    key_mask: Tensor | None = None,
    query_value: Tensor | None = None,
    auxiliary_output: Tensor | None = None,
    local: LocalResidual | None = None,
) -> Tensor:
    """:func:`linear_angular` with its formula prepared by :func:`angular_formula`."""
    identity = formula.identity
    residual = query_value if identity else None
    if identity and residual is None and query.shape[1] != value.shape[1]:
        raise ValueError(
            'constant="identity" needs one value per query, got '
            f"{value.shape[1]} values for {query.shape[1]} queries: pass query_value or "
            'use constant="mean"'
        )
    for name, tensor in (("auxiliary_output", auxiliary_output), ("query_value", query_value)):
        if tensor is not None and tensor.shape != (*query.shape[:3], value.shape[-1]):
            expected = (*query.shape[:3], value.shape[-1])
            raise ValueError(f"{name} must be {expected}, got {tuple(tensor.shape)}")
    before = auxiliary_output if formula.normalize != "rowsum" else None
    if before is not None:
        # The operator has one addend for both ½·v_i and the auxiliary output.
        if identity:
            at_query = mask_tokens(value, key_mask) if residual is None else residual
            before = before + identity * at_query
        formula, residual = formula._replace(identity=1.0), before
    weight = None
    if local is not None:
        weight, grid, prefix = local
        if grid is not None or prefix:
            formula = LinearOptions(*formula[:-2], tuple(grid or ()), prefix)
    out = linear_attention(LinearTensors(query, key, value, residual, weight, key_mask), formula)
    return (
        out
        if auxiliary_output is None or before is not None
        else out + auxiliary_output.to(out.dtype)
    )


def angular_similarity(query: Tensor, key: Tensor, *, exact: bool, eps: float = 1e-6) -> Tensor:
    """The N×N similarity: 1 − arccos(c)/π if ``exact``, else its linear part ½ + c/π.

    ``c`` is kept within ±(1 − 1e-6) in the exact form: the derivative of arccos is infinite at ±1.

    Returns:
        (B, H, N_q, N_k).
    """
    q, k = (normalise_rows(tensor, eps) for tensor in upcast(query, key))
    cosine = scores_of(q, k)
    if not exact:
        return 0.5 + cosine / math.pi
    return 1 - torch.arccos(cosine.clamp(-1 + 1e-6, 1 - 1e-6)) / math.pi


def quadratic_angular(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    normalize: Normalisation = "l2",
    eps: float = 1e-6,
    key_mask: Tensor | None = None,
    auxiliary_output: Tensor | None = None,
) -> Tensor:
    """Attention with the exact angular kernel 1 − arccos⟨q̂, k̂⟩/π, in O(N²): reference and ablation.

    Arguments and result as in :func:`linear_angular`; sums are means over the keys.
    """
    check_qkv(query, key, value, key_mask)
    dtype = value.dtype
    with autocast_off(value):
        similarity = angular_similarity(query, key, exact=True, eps=eps)
        if key_mask is not None:
            similarity = similarity.masked_fill(~key_mask[:, None, None, :], 0)
        (v,) = upcast(value)
        out = weighted_values(similarity, mask_tokens(v, key_mask))
        if normalize == "rowsum":
            rows = similarity.sum(dim=-1).transpose(1, 2).unsqueeze(-1)
            out = out / rows.masked_fill(rows == 0, 1)  # every key of a sample may be masked
        else:
            out = out / count_keys(key, key_mask)
        if auxiliary_output is not None:
            out = out + auxiliary_output.to(out.dtype)
        return (normalise_rows(out, eps) if normalize == "l2" else out).to(dtype)
