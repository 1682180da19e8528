"""What one call of a kernel is given, as one typed value."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from castling.ops.local import LocalResidual


class AttentionInputs(NamedTuple):
    """Projected tokens, and everything beside them that a kernel may need.

    A kernel reads the fields it has a use for; a misspelt field is a TypeError.

    Attributes:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        auxiliary_output: (B, N_q, H, d_v), the auxiliary branch's output, added before an L2
            normalisation and after a row-sum one.
        key_mask: (B, N_k) boolean, True where a key takes part.
        bias: added to softmax scores, broadcastable to (B, H, N_q, N_k); linear kernels ignore it.
        query_value: (B, N_q, H, d_v), the value at each query's position where N_q ≠ N_k.
        grid: (h, w) of the key tokens behind the prefix.
        num_prefix_tokens: class, distillation and register tokens in front of the grid.
        local: convolution of the values, added last; only for kernels with ``adds_local``.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    auxiliary_output: Tensor | None = None
    key_mask: Tensor | None = None
    bias: Tensor | None = None
    query_value: Tensor | None = None
    grid: tuple[int, int] | None = None
    num_prefix_tokens: int = 0
    local: LocalResidual | None = None
