"""Tile sizes of the linear-attention kernels: one fixed table, so that results never depend on it.

No search at the first call: a different tile adds in a different order. The numbers come from what
compiles for compute capability 9.0 without spilling registers (``benchmarks/compile_kernels.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

from castling.ops.triton.common import PROGRAMS_TO_FILL_A_GPU

# One launch serves up to this many tokens: its programs, one per sample and group of heads, then
# take about as long as the launches of the other form.
SINGLE_LAUNCH_TOKENS = 640
# A block of queries reads the whole state first: enough rows to make that a small part.
BLOCK_TOKENS = 512


@dataclass(frozen=True)
class Tile:
    """Tokens per step, warps per program and depth of the software pipeline of one kernel."""

    rows: int
    num_warps: int
    num_stages: int


# kernel -> padded channels of a group, the wider of keys and values -> tile; half precision first.
_HALF = {
    "single": {16: Tile(64, 4, 2), 32: Tile(64, 4, 2), 64: Tile(64, 4, 2), 128: Tile(64, 8, 2)},
    "state": {16: Tile(64, 4, 3), 32: Tile(64, 4, 3), 64: Tile(64, 4, 3), 128: Tile(64, 8, 2)},
    "output": {16: Tile(64, 4, 2), 32: Tile(64, 4, 2), 64: Tile(64, 4, 2), 128: Tile(64, 8, 2)},
    "queries": {16: Tile(64, 4, 2), 32: Tile(64, 4, 2), 64: Tile(64, 4, 2), 128: Tile(32, 8, 1)},
    "keys": {16: Tile(64, 4, 2), 32: Tile(64, 4, 2), 64: Tile(64, 4, 2), 128: Tile(64, 8, 1)},
}
_FLOAT = {
    "single": {16: Tile(32, 4, 1), 32: Tile(32, 4, 1), 64: Tile(32, 4, 1), 128: Tile(16, 8, 1)},
    "state": {16: Tile(32, 4, 2), 32: Tile(32, 4, 2), 64: Tile(32, 4, 2), 128: Tile(16, 8, 1)},
    "output": {16: Tile(32, 4, 1), 32: Tile(32, 4, 1), 64: Tile(32, 4, 1), 128: Tile(32, 8, 1)},
    "queries": {16: Tile(32, 4, 1), 32: Tile(32, 4, 1), 64: Tile(32, 8, 1), 128: Tile(16, 8, 1)},
    "keys": {16: Tile(32, 4, 1), 32: Tile(32, 4, 1), 64: Tile(32, 4, 1), 128: Tile(16, 8, 1)},
}


def tile_of(kernel: str, width: int, *, half: bool) -> Tile:
    """The tile of a kernel whose group of heads is ``width`` padded channels wide (16 … 128)."""
    return (_HALF if half else _FLOAT)[kernel][width]


def parts_of(tokens: int, programs: int, rows: int, longest: int | None = None) -> tuple[int, int]:
    """How many parts the tokens are cut into, and the tokens of a part (a multiple of ``rows``).

    Args:
        tokens: N.
        programs: programs per part: samples times groups of heads.
        rows: tokens per step.
        longest: no part is longer.
    """
    wanted = -(-PROGRAMS_TO_FILL_A_GPU // programs)
    if longest is not None:
        wanted = max(wanted, -(-tokens // longest))
    # Two steps at least, or a part is all prologue.
    length = max(-(-tokens // wanted), 2 * rows)
    length = -(-length // rows) * rows
    return max(1, -(-tokens // length)), length
