"""Building blocks of the Taylor kernels: tiles of tokens, row norms, products.

- Raw half-precision rows enter products unrounded; their norms multiply the float32 result.
- A computed operand is rounded once, to OPERAND: "bf16", "fp16", "tf32" (for float16 inputs if
  float16 could overflow) or "fp32" (float32 input: full precision).
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton import interpreting

# The interpreter multiplies bfloat16 as if its bits were integers.
INTERPRETING = tl.constexpr(interpreting())


@triton.jit
def locate(tiles, heads):
    """(tile, row of B·H, batch, head) of this program; tiles of one head are neighbours."""
    program = tl.program_id(0)
    row = program // tiles
    return (
        program % tiles,
        row.to(tl.int64),
        (row // heads).to(tl.int64),
        (row % heads).to(tl.int64),
    )


@triton.jit
def kept(mask, mask_batch, mask_token, batch, tokens, count, MASKED: tl.constexpr):
    """Whether each of ``tokens`` exists and takes part."""
    valid = tokens < count
    if MASKED:
        pointers = mask + batch * mask_batch + tokens.to(tl.int64) * mask_token
        valid = valid & (tl.load(pointers, mask=valid, other=0) != 0)
    return valid


@triton.jit
def load_tile(
    base, tokens, valid, token_stride, channel_stride, DIM: tl.constexpr, WIDTH: tl.constexpr
):
    """(tokens, WIDTH) in the dtype of ``base``; zero where not ``valid`` and beyond DIM."""
    channels = tl.arange(0, WIDTH)
    pointers = base + tokens.to(tl.int64)[:, None] * token_stride
    pointers += channels.to(tl.int64)[None, :] * channel_stride
    wanted = valid[:, None]
    if DIM != WIDTH:
        wanted = wanted & (channels < DIM)[None, :]
    return tl.load(pointers, mask=wanted, other=0.0)


@triton.jit
def centred(tile, centre, row, valid, WIDTH: tl.constexpr, CENTRED: tl.constexpr):
    """``tile`` less row ``row`` of ``centre`` (B·H, WIDTH) if CENTRED, invalid rows still zero."""
    if CENTRED:
        middle = tl.load(centre + row * WIDTH + tl.arange(0, WIDTH))
        tile = tl.where(valid[:, None], tile.to(tl.float32) - middle[None, :], 0.0)
    return tile


@triton.jit
def narrowed(tile, DTYPE: tl.constexpr):
    """``tile`` in DTYPE, to the nearest: the interpreter cuts bfloat16 off instead of rounding."""
    if INTERPRETING and (tl.bfloat16 == DTYPE):
        bits = tile.to(tl.float32).to(tl.int32, bitcast=True)
        bits = bits + 0x7FFF + ((bits >> 16) & 1)
        tile = (bits & -65536).to(tl.float32, bitcast=True)
    return tile.to(DTYPE)


@triton.jit
def store_tile(base, tile, tokens, valid, token_stride, DIM: tl.constexpr, WIDTH: tl.constexpr):
    """Write (tokens, DIM) of ``tile`` to rows of stride 1 in the dtype of ``base``."""
    channels = tl.arange(0, WIDTH)
    pointers = base + tokens.to(tl.int64)[:, None] * token_stride + channels[None, :]
    wanted = valid[:, None]
    if DIM != WIDTH:
        wanted = wanted & (channels < DIM)[None, :]
    tl.store(pointers, narrowed(tile, base.dtype.element_ty), mask=wanted)


@triton.jit
def row_scale(tile, valid, eps, DIM: tl.constexpr, QK_NORM: tl.constexpr):
    """Scale s of x̂ = s·x: rsqrt(Σx² + eps), 0 for a zero row unless eps is 0; else d^-¼."""
    if QK_NORM:
        squares = tl.sum(tile * tile, axis=1)
        alive = valid & ((squares != 0.0) | (eps == 0.0))
        scale = tl.where(alive, tl.math.rsqrt(squares + eps), 0.0)
    else:
        scale = tl.where(valid, DIM**-0.25, 0.0)
    return scale


@triton.jit
def row_scale_gradient(tile, scale, gradient, QK_NORM: tl.constexpr):
    """Gradient of a row x from that of x̂ = s·x: s·(g − x̂⟨x̂, g⟩), or s·g without QK_NORM."""
    if QK_NORM:
        unit = tile * scale[:, None]
        gradient = gradient - unit * tl.sum(unit * gradient, axis=1)[:, None]
    return gradient * scale[:, None]


@triton.jit
def inverse_row_sum(below, count, eps):
    """1/(count + below + count·eps): of a row sum with its ones, ``count``, apart; 0 without keys.

    Without keys the numerator is zero, and the row sum, eps alone, may be 0 too.
    """
    ones = tl.zeros_like(below) + count
    total = tl.where(ones > 0.0, ones + below + ones * eps, 1.0)
    return tl.where(ones > 0.0, 1.0 / total, 0.0)


@triton.jit
def raw_product(left, right):
    """Product left @ right of untouched inputs, in float32."""
    if left.dtype == tl.float32:
        result = tl.dot(left, right, input_precision="ieee")
    elif INTERPRETING:
        result = tl.dot(left.to(tl.float32), right.to(tl.float32), input_precision="ieee")
    else:
        result = tl.dot(left, right)
    return result


@triton.jit
def operand(tile, OPERAND: tl.constexpr):
    """``tile`` as an operand of :func:`product`."""
    if OPERAND == "bf16":
        rounded = narrowed(tile, tl.bfloat16)
        if INTERPRETING:
            rounded = rounded.to(tl.float32)
    elif OPERAND == "fp16":
        rounded = tile.to(tl.float16)
    else:
        rounded = tile.to(tl.float32)
    return rounded


@triton.jit
def product(left, right, accumulator, OPERAND: tl.constexpr):
    """Sum accumulator + left @ right, each rounded to OPERAND."""
    left = operand(left, OPERAND)
    right = operand(right, OPERAND)
    if OPERAND == "fp32":
        accumulator = tl.dot(left, right, accumulator, input_precision="ieee")
    elif OPERAND == "tf32":
        accumulator = tl.dot(left, right, accumulator, input_precision="tf32")
    else:
        accumulator = tl.dot(left, right, accumulator)
    return accumulator


@triton.jit
def state_product(rows, state, accumulator, OPERAND: tl.constexpr):
    """Sum accumulator + rows @ state: raw rows, a float32 state in two parts, high and low."""
    if (OPERAND == "bf16") or (OPERAND == "fp16"):
        high = operand(state, OPERAND)
        accumulator = product(rows, state - high.to(tl.float32), accumulator, OPERAND)
        accumulator = product(rows, high, accumulator, OPERAND)
    else:
        accumulator = product(rows, state, accumulator, OPERAND)
    return accumulator


@triton.jit
def load_state(state, row, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The float32 matrix (ROWS, COLUMNS) of head ``row`` in a packed array of them."""
    first = tl.arange(0, ROWS)[:, None]
    return tl.load(
        state + row * (ROWS * COLUMNS) + first * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    )
