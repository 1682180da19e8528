"""What the exact Taylor attention keeps between forward and backward, and which order it takes.

Kept apart from the kernels, so that the fake implementation needs no Triton.
"""

from __future__ import annotations

from typing import Literal

Order = Literal["auto", "direct", "features"]


def taylor_state_shape(
    batch: int,
    heads: int,
    dim: int,
    value_dim: int,
    order: str,
    queries: int,
    keys: int,
    save_state: bool,
) -> tuple[int, ...]:
    """Always (0,): the backward pass makes its sums over the keys again.

    They cost one read of keys and values; kept, they would take more memory than the keys
    themselves below d²/2 tokens.
    """
    return (0,)


def pair_count(dim: int) -> int:
    """Products x_a·x_b the feature form makes of one row: whole 8×8 tiles on and above a = b."""
    blocks = -(-dim // 8)
    return 64 * (blocks * (blocks + 1) // 2)


def resolve_order(order: str, dim: int, value_dim: int, queries: int, keys: int) -> str:
    """``order``, with ``"auto"`` replaced by the form with fewer multiplications.

    Raises:
        ValueError: ``order`` is unknown.
    """
    if order not in ("auto", "direct", "features"):
        raise ValueError(f'order must be "auto", "direct" or "features", got {order!r}')
    if order != "auto":
        return order
    direct = queries * keys * (dim + value_dim)
    return "direct" if direct < (queries + keys) * pair_count(dim) * value_dim else "features"
