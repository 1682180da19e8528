"""Building blocks of the attention kernels: tiles of tokens, row sums per head, split products.

- A program handles GROUP neighbouring heads at once, side by side in the columns of its tiles, so
  that a row of narrow heads still fills a 128-byte line. Channels of a head are padded to WIDTH, a
  power of two; padded ones are loaded as zeros and never stored.
- Sums and products accumulate in float32. Operands of half precision are multiplied in bfloat16:
  exactly if the input is raw bfloat16, else as high + low part (16 bits), so that neither the range
  of float16 nor eight bits of mantissa limit the state.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton import interpreting

# The interpreter truncates to bfloat16, and multiplies bfloat16 as if its bits were integers.
INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def row_sums(tile, ROWS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr):
    """Sum over each head's channels: (ROWS, GROUP·WIDTH) -> (ROWS, GROUP)."""
    if GROUP == 1:
        sums = tl.sum(tile, axis=1, keep_dims=True)
    else:
        sums = tl.sum(tl.reshape(tile, (ROWS, GROUP, WIDTH)), axis=2)
    return sums


@triton.jit
def spread(rows, ROWS: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr):
    """Repeat a number per row and head for its channels: (ROWS, GROUP) -> (ROWS, GROUP·WIDTH).

    A single head stays (ROWS, 1), which broadcasts.
    """
    if GROUP == 1:
        wide = rows
    else:
        wide = tl.broadcast_to(tl.reshape(rows, (ROWS, GROUP, 1)), (ROWS, GROUP, WIDTH))
        wide = tl.reshape(wide, (ROWS, GROUP * WIDTH))
    return wide


@triton.jit
def safe_rsqrt(squares, eps):
    """1/√(squares + eps), but 0 where squares is 0 (unless eps is 0)."""
    return tl.where((squares == 0.0) & (eps > 0.0), 0.0, tl.math.rsqrt(squares + eps))


@triton.jit
def safe_inverse(total):
    """1/total, but 1 where total is exactly 0."""
    return 1.0 / tl.where(total == 0.0, 1.0, total)


@triton.jit
def load_rows(base, tokens, valid, stride, columns, CHANNELS: tl.constexpr, WIDTH: tl.constexpr):
    """Rows ``tokens`` as float32, zero where not ``valid`` and in padded channels.

    ``columns`` are the offsets of the columns in memory; products with ``stride`` take 64 bits.
    """
    pointers = base + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    mask = valid[:, None]
    if CHANNELS != WIDTH:
        channel = tl.arange(0, columns.shape[0]) % WIDTH
        mask = mask & (channel < CHANNELS)[None, :]
    return tl.load(pointers, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def store_rows(
    base, tile, tokens, valid, stride, columns, CHANNELS: tl.constexpr, WIDTH: tl.constexpr
):
    """Write rows ``tokens`` in the dtype of ``base``, valid ones and real channels only."""
    pointers = base + tokens.to(tl.int64)[:, None] * stride + columns[None, :]
    mask = valid[:, None]
    if CHANNELS != WIDTH:
        channel = tl.arange(0, columns.shape[0]) % WIDTH
        mask = mask & (channel < CHANNELS)[None, :]
    tl.store(pointers, tile.to(base.dtype.element_ty), mask=mask)


@triton.jit
def column_offsets(head_stride, channel_stride, GROUP: tl.constexpr, WIDTH: tl.constexpr):
    """Offsets of GROUP heads' padded channels from the first head: (GROUP·WIDTH,)."""
    column = tl.arange(0, GROUP * WIDTH)
    if GROUP == 1:
        offsets = column * channel_stride
    else:
        offsets = (column // WIDTH) * head_stride + (column % WIDTH) * channel_stride
    return offsets


@triton.jit
def rounded_to_bfloat16(tile):
    """``tile.to(tl.bfloat16)`` as on a GPU (to nearest even), kept in float32."""
    bits = tile.to(tl.int32, bitcast=True)
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def split(tile, PRECISION: tl.constexpr):
    """Operands of a float32 tile: itself, or a high and a low bfloat16 if PRECISION is "split"."""
    if PRECISION == "split" and INTERPRETING:
        high = rounded_to_bfloat16(tile)
        low = rounded_to_bfloat16(tile - high)
    elif PRECISION == "split":
        high = tile.to(tl.bfloat16)
        low = (tile - high.to(tl.float32)).to(tl.bfloat16)
    else:
        high = tile
        low = tile
    return high, low


@triton.jit
def multiply(
    left_high,
    left_low,
    right_high,
    right_low,
    accumulator,
    LEFT_EXACT: tl.constexpr,
    RIGHT_EXACT: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Accumulator + left @ right, with operands from :func:`split`.

    An exact operand has no low part. low·low, 2⁻¹⁶ of the result, is left out.
    """
    if PRECISION == "split":
        if not LEFT_EXACT:
            accumulator = tl.dot(left_low, right_high, accumulator)
        if not RIGHT_EXACT:
            accumulator = tl.dot(left_high, right_low, accumulator)
        accumulator = tl.dot(left_high, right_high, accumulator)
    else:
        accumulator = tl.dot(left_high, right_high, accumulator, input_precision=PRECISION)
    return accumulator


@triton.jit
def sum_parts_kernel(
    parts,
    out,
    count,
    numbers,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write out[i] = Σ_p parts[p, i], in a fixed order: parts (count, numbers), float32."""
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row = tl.arange(0, ROWS)
    total = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, ROWS):
        pointers = parts + (first + row).to(tl.int64)[:, None] * numbers + index[None, :]
        mask = ((first + row) < count)[:, None] & (index < numbers)[None, :]
        total += tl.sum(tl.load(pointers, mask=mask, other=0.0), axis=0)
    tl.store(out + index, total, mask=index < numbers)
