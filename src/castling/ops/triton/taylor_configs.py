"""Order, state and tile sizes of a call of the Taylor kernels; needs no Triton.

Tile sizes are chosen to fit the registers of compute capability 9.0 without spilling.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from castling.ops.taylor_inputs import TaylorOptions, TaylorTensors, order_of
from castling.ops.triton.common import PROGRAMS_TO_FILL_A_GPU


@dataclass(frozen=True)
class Tile:
    """One kernel's tile.

    Args:
        block: tokens of a program's own tile (or the side of its square of channels).
        step: tokens a loop takes at once.
        warps: warps per program.
        stages: depth of the loop's software pipeline.
    """

    block: int
    step: int
    warps: int
    stages: int


# By kernel, then by the wider of the padded d and d_v: 64 or less, or 128 and more.
HALF = {
    "forward": (Tile(128, 64, 8, 3), Tile(128, 64, 8, 2)),
    "query_gradient": (Tile(128, 64, 8, 2), Tile(64, 64, 8, 2)),
    "key_gradient": (Tile(128, 32, 8, 2), Tile(64, 32, 8, 2)),
    "moment": (Tile(0, 64, 4, 2), Tile(0, 64, 8, 2)),
    "pairs": (Tile(16, 64, 8, 3), Tile(16, 32, 8, 2)),
    "output": (Tile(128, 0, 4, 3), Tile(128, 0, 8, 2)),
    "gradient": (Tile(128, 0, 8, 2), Tile(64, 0, 8, 2)),
}
# Full-precision float32 products run on the scalar units, one register per operand.
FULL = {
    "forward": (Tile(64, 32, 8, 2), Tile(32, 32, 8, 1)),
    "query_gradient": (Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    "key_gradient": (Tile(32, 32, 8, 1), Tile(32, 16, 8, 1)),
    "moment": (Tile(0, 32, 8, 1), Tile(0, 16, 8, 1)),
    "pairs": (Tile(8, 32, 8, 1), Tile(8, 16, 8, 1)),
    "output": (Tile(32, 0, 8, 1), Tile(16, 0, 8, 1)),
    "gradient": (Tile(32, 0, 8, 1), Tile(16, 0, 8, 1)),
}


def tile_of(kernel: str, width: int, precision: str) -> Tile:
    """The tile of ``kernel`` for padded widths up to ``width``, operands of ``precision``."""
    table = HALF if precision in ("bf16", "fp16") else FULL
    return table[kernel][0 if width <= 64 else 1]


def operand_of(dtype: torch.dtype, *, unit_rows: bool, backward: bool) -> str:
    """The precision of computed operands for inputs of ``dtype``.

    float16 is enough for the forward pass of unit rows. Unbounded z, and gradients, which shrink
    with 1/N, use tf32: the same mantissa with the range of float32.
    """
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype == torch.float16:
        return "fp16" if unit_rows and not backward else "tf32"
    return "fp32"


def splits_of(programs: int, tokens: int, step: int) -> tuple[int, int]:
    """(splits, tokens of each): ``programs`` × splits fill a GPU, at least four steps each."""
    wanted = -(-PROGRAMS_TO_FILL_A_GPU // programs)
    shortest = 4 * step
    share = -(-tokens // wanted)
    length = -(-share // shortest) * shortest
    return -(-tokens // length), length


def taylor_state_shape(
    tensors: TaylorTensors, options: TaylorOptions, save_state: bool
) -> tuple[int, ...]:
    """Always (0,): the backward pass recomputes the sums over the keys.

    That costs one read of keys and values; saved, the sums would take more memory than the keys
    below d²/2 tokens.
    """
    return (0,)


def pair_count(dim: int) -> int:
    """Products x_a·x_b per row in the feature form: whole 8×8 tiles on and above the diagonal."""
    blocks = -(-dim // 8)
    return 64 * (blocks * (blocks + 1) // 2)


def chosen_order(tensors: TaylorTensors, options: TaylorOptions) -> str:
    """The order of this call; raises ValueError where there is no such order."""
    _, queries, _, dim = tensors.query.shape
    _, keys, _, value_dim = tensors.value.shape
    return order_of(options.order, queries, keys, dim, value_dim, pair_count(dim))
