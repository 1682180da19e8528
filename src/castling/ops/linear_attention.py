"""Linear attention with elementwise feature maps: one formula behind seven kernels.

With φ(x) of as many channels as x, A = Σ_j φ(k_j) v_jᵀ, z = Σ_j φ(k_j), m = Σ_j v_j and N keys,

    x_i = ι·r_i + s·(γ·φ(q_i)ᵀA + a·m),    y_i = normalise(x_i),    out_i = y_i + conv(v)_i.

Linear-angular, cosine, ReLU, mean, first-order Taylor, sigmoid-softmax and the released quadratic
Taylor attention are choices of φ, ι, s, γ, a and the normalisation. The formula in basic operators
is the reference; the fused backends (:mod:`castling.ops.backends`) compute it in one operator that
reads each tensor once.
"""

from __future__ import annotations

from torch import Tensor

from castling.ops.backends import FUSED, compiled, select_backend
from castling.ops.common import check_qkv
from castling.ops.fused_linear_attention import fused_linear_attention
from castling.ops.linear_inputs import LinearOptions, LinearTensors
from castling.ops.naive_linear_attention import naive_linear_attention


def linear_attention(tensors: LinearTensors, options: LinearOptions) -> Tensor:
    """The module's formula on the selected backend; O(N·d·d_v).

    Args:
        tensors: inputs; see :class:`LinearTensors` for shapes.
        options: φ, ι, s, γ, a and the normalisation.

    Returns:
        (B, N_q, H, d_v) in the dtype of the value; sums and norms are float32 or better.

    Raises:
        ValueError: shapes disagree.
        BackendError: the forced backend cannot run on this input.
    """
    query, key, value = tensors[:3]
    check_qkv(query, key, value, tensors.key_mask)
    _check_positions(tensors, options)
    backend = select_backend(query, value)
    if backend in FUSED:
        return fused_linear_attention(tensors, options, backend)
    formula = compiled(naive_linear_attention) if backend == "compiled" else naive_linear_attention
    return formula(tensors, options)


def _check_positions(tensors: LinearTensors, options: LinearOptions) -> None:
    query, _, value, residual, local_weight, _, _ = tensors
    if not (options.eps >= 0 and options.row_eps >= 0):
        raise ValueError(f"eps cannot be negative, got {options.eps} and {options.row_eps}")
    queries = query.shape[1]
    if residual is not None:
        expected = (*query.shape[:3], value.shape[-1])
        if tuple(residual.shape) != tuple(expected):
            raise ValueError(
                "the value at each query must have one row per query, (batch, queries, heads, "
                f"value channels) = {tuple(expected)}; got {tuple(residual.shape)}"
            )
    elif options.identity and queries != value.shape[1]:
        raise ValueError(
            f"the identity term needs one value per query, got {value.shape[1]} values for "
            f"{queries} queries: pass the values at the queries, or leave the term out"
        )
    if local_weight is not None and queries != value.shape[1]:
        raise ValueError(
            f"a local residual needs as many queries as keys, got {queries} queries for "
            f"{value.shape[1]} keys"
        )
