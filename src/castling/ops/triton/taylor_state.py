"""What the exact Taylor attention keeps between forward and backward, and which order it takes.

Kept apart from the kernels, so that the fake implementation needs no Triton.
"""

from __future__ import annotations

from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors, order_of


def taylor_state_shape(
    tensors: TaylorTensors, options: TaylorOptions, save_state: bool
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


def chosen_order(tensors: TaylorTensors, options: TaylorOptions) -> str:
    """The order of this call; raises ValueError where there is no such order."""
    _, queries, _, dim = tensors.query.shape
    _, keys, _, value_dim = tensors.value.shape
    return order_of(options.order, queries, keys, dim, value_dim, pair_count(dim))
