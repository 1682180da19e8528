"""Tile sizes of the linear-attention kernels.

A fixed table without autotuning: another tile would add in another order and change results. The
sizes compile for compute capability 9.0 without spilling (``benchmarks/compile_kernels.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from castling.ops.triton.common import PROGRAMS_TO_FILL_A_GPU

# Up to this many tokens one launch is used: its programs, one per sample and group of heads, then
# take about as long as the launch overhead of two.
SINGLE_LAUNCH_TOKENS = 640
# A block of queries reads the whole state first: long enough to make that a small part.
BLOCK_TOKENS = 512


@dataclass(frozen=True)
class Tile:
    """Tokens per step, warps per program and depth of the software pipeline of one kernel."""

    rows: int
    num_warps: int
    num_stages: int


# kernel -> tile for groups of heads up to 64 padded channels wide, and up to 128. Kernels with a
# convolution also hold its taps, and the gradient of "squares" more tiles: fewer rows at once.
# 64 rows are the minimum of a matrix instruction of capability 9.0.
_BFLOAT16 = {
    "single": (Tile(64, 4, 2), Tile(64, 8, 2)),
    "single local": (Tile(32, 4, 2), Tile(32, 8, 2)),
    "state": (Tile(64, 4, 3), Tile(64, 8, 2)),
    "output": (Tile(64, 4, 2), Tile(64, 8, 2)),
    "output local": (Tile(32, 4, 2), Tile(32, 8, 2)),
    "queries": (Tile(32, 4, 2), Tile(16, 8, 2)),
    "queries squares": (Tile(16, 4, 2), Tile(16, 8, 1)),
    "keys": (Tile(64, 4, 2), Tile(64, 8, 2)),
    "keys squares": (Tile(32, 4, 2), Tile(16, 8, 2)),
    "keys local": (Tile(32, 4, 2), Tile(32, 8, 2)),
    "keys squares local": (Tile(16, 4, 2), Tile(16, 8, 2)),
}
# Both operands of a product are split: one more product.
_FLOAT16 = _BFLOAT16 | {
    "keys": (Tile(64, 4, 2), Tile(16, 8, 2)),
    "keys local": (Tile(32, 4, 2), Tile(16, 8, 2)),
}
# Products run on the scalar units and keep operands in registers.
_FLOAT32 = {
    "single": (Tile(32, 8, 1), Tile(16, 16, 1)),
    "single local": (Tile(16, 8, 1), Tile(16, 16, 1)),
    "state": (Tile(32, 8, 2), Tile(16, 8, 2)),
    "output": (Tile(32, 8, 1), Tile(16, 16, 1)),
    "output local": (Tile(16, 4, 1), Tile(16, 16, 1)),
    "queries": (Tile(32, 8, 1), Tile(16, 16, 1)),
    "queries squares": (Tile(16, 8, 1), Tile(16, 16, 1)),
    "keys": (Tile(32, 8, 1), Tile(16, 16, 1)),
    "keys squares": (Tile(16, 8, 1), Tile(16, 16, 1)),
    "keys local": (Tile(16, 8, 1), Tile(16, 16, 1)),
    "keys squares local": (Tile(16, 8, 1), Tile(16, 16, 1)),
}
_TILES = {
    torch.bfloat16: _BFLOAT16,
    torch.float16: _FLOAT16,
    torch.float32: _FLOAT32,
}


def tile_of(kernel: str, width: int, dtype: torch.dtype) -> Tile:
    """The tile of a kernel whose group of heads is ``width`` padded channels wide (16 … 128)."""
    return _TILES[dtype][kernel][width > 64]


def parts_of(tokens: int, programs: int, rows: int, longest: int | None = None) -> tuple[int, int]:
    """Number of parts of the tokens, and tokens of a part (a multiple of ``rows``).

    Args:
        tokens: N.
        programs: programs per part: samples times groups of heads.
        rows: tokens per step.
        longest: maximum length of a part.
    """
    wanted = -(-PROGRAMS_TO_FILL_A_GPU // programs)
    if longest is not None:
        wanted = max(wanted, -(-tokens // longest))
    # At least two steps, or the prologue dominates.
    length = max(-(-tokens // wanted), 2 * rows)
    length = -(-length // rows) * rows
    return max(1, -(-tokens // length)), length
