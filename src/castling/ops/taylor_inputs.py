"""Inputs of exact Taylor attention, and the choice of the order of its sums."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Order = Literal["auto", "direct", "features"]


class TaylorTensors(NamedTuple):
    """The tensors of a call.

    Attributes:
        query: (B, N_q, H, d).
        key: (B, N_k, H, d).
        value: (B, N_k, H, d_v).
        key_mask: (B, N_k) boolean, True where a key takes part; None keeps all.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    key_mask: Tensor | None = None


class TaylorOptions(NamedTuple):
    """The formula of a call, Sim(q, k) = 1 + z + z²/2 divided by its row sum.

    Attributes:
        qk_norm: z = ⟨q̂, k̂⟩ with x̂ = x/√(‖x‖² + eps); otherwise z = ⟨q, k⟩/√d.
        eps: under the norms, and added to the mean of a row of similarities.
        order: ``"direct"`` forms the N_q×N_k similarity, ``"features"`` the symmetric features;
            ``"auto"`` takes the one with fewer multiplications.
    """

    qk_norm: bool = True
    eps: float = 1e-9
    order: str = "auto"


def order_of(order: str, queries: int, keys: int, dim: int, value_dim: int, features: int) -> str:
    """Resolve ``"auto"``: ``"direct"`` or ``"features"`` for these sizes.

    Args:
        order: as in :class:`TaylorOptions`.
        queries: N_q.
        keys: N_k.
        dim: d.
        value_dim: d_v.
        features: features per row in the implementation.

    Raises:
        ValueError: there is no such order.
    """
    if order in ("direct", "features"):
        return order
    if order != "auto":
        raise ValueError(f'order must be "auto", "direct" or "features", got {order!r}')
    direct = queries * keys * (dim + value_dim)
    return "direct" if direct < (queries + keys) * features * value_dim else "features"
