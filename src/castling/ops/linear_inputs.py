"""Inputs of linear attention: tensors, and the choice of the formula.

:mod:`castling.ops.linear_attention` has the formula; every backend takes these two.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

from torch import Tensor

from castling.ops.local import LocalResidual

Features = Literal["unit", "relu", "squares", "identity"]
Normalisation = Literal["l2", "rowsum", "none"]
KeyValueScale = float | Literal["tokens"]


def scale_number(kv_scale: KeyValueScale) -> float:
    """S as in :class:`LinearOptions`; raises ValueError unless positive or ``"tokens"``."""
    if kv_scale == "tokens":
        return 0.0
    if not isinstance(kv_scale, int | float) or not 0 < kv_scale < math.inf:
        raise ValueError(f'kv_scale must be positive, or "tokens" for 1/N; got {kv_scale!r}')
    return kv_scale


class LinearTensors(NamedTuple):
    """The tensors of a call.

    Attributes:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        residual: r, (B, N_q, H, d_v); None takes the values, which needs N_q = N_k.
        local_weight: filters of a convolution of the values, added after normalisation (needs
            N_q = N_k): (H, 1, taps, 1) without a grid, (H·d_v, 1, k, k) on one; odd sizes.
        key_mask: (B, N_k) boolean, True where a key takes part; other keys and values count as 0.
        scalar: 0-dim, learnable; its square is added to a.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    residual: Tensor | None = None
    local_weight: Tensor | None = None
    key_mask: Tensor | None = None
    scalar: Tensor | None = None


class LinearOptions(NamedTuple):
    """The formula of a call.

    Attributes:
        features: φ: ``"unit"`` x/√(‖x‖² + eps); ``"relu"``; ``"squares"``
            (:func:`castling.ops.taylor_features.squared_directions`); ``"identity"``.
        normalize: ``"l2"`` divides each row by its Euclidean norm; ``"rowsum"`` by
            s·(γ·⟨φ(q_i), z⟩ + a·N) + row_eps (rows without any weight become zero); ``"none"``.
        identity: ι, times the residual, or times the value at the query where there is none.
        gamma: γ.
        alpha: a.
        kv_scale: s > 0; 0 means 1/N.
        eps: under the root of every norm.
        row_eps: added to a row sum.
        grid: (h, w) of the tokens after the prefix; () for a convolution along the tokens.
        prefix: tokens before the grid.
    """

    features: str
    normalize: str
    identity: float = 0.0
    gamma: float = 1.0
    alpha: float = 0.0
    kv_scale: float = 0.0
    eps: float = 1e-6
    row_eps: float = 0.0
    grid: tuple[int, ...] = ()
    prefix: int = 0

    def local(self, weight: Tensor | None) -> LocalResidual | None:
        """The convolution with these filters."""
        if weight is None:
            return None
        grid: Any = self.grid or None  # check_local checks that it has two sides
        return LocalResidual(weight, grid, self.prefix)
