"""Tile sizes of the Taylor kernels: one small table, chosen to fit the registers of sm_90."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
# Full-precision products of float32 run on the ordinary cores, one register per operand.
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

    float16 holds what unit rows make of a forward pass; unbounded z, and gradients, which shrink
    with 1/N, get the same mantissa with the range of float32.
    """
    if dtype == torch.bfloat16:
        return "bf16"
    if dtype == torch.float16:
        return "fp16" if unit_rows and not backward else "tf32"
    return "fp32"


def splits_of(programs: int, tokens: int, step: int) -> tuple[int, int]:
    """(splits, tokens of each): ``programs`` × splits fill a GPU, at least four steps each."""
    wanted = -(-PROGRAMS_TO_FILL_A_GPU // programs)
    least = 4 * step
    share = -(-tokens // wanted)
    length = -(-share // least) * least
    return -(-tokens // length), length
