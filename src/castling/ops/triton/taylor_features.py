"""Exact Taylor attention by its symmetric features, which exist in registers only.

With x̂ = s·x a head's sums are S₀ = Σw, S₁ = Σx̂wᵀ and S₂[a, b] = Σx̂_a x̂_b w, and

    Σ_j (1 + z + z²/2) w_j = S₀ + S₁ᵀq̂ + ½Σ_ab q̂_a q̂_b S₂[a, b],

the row sum being the same with w = 1 (E₁ = Σx̂, E₂ = Σx̂x̂ᵀ). Both passes use three kernels, with
queries and keys exchanged: *pairs* (tokens -> S₂), *output* (rows, S -> the sum
above) and *gradient* (rows, w, S -> S₁w + Σ_b x̂_b S₂[·, b]w).

- S₂ is symmetric. Channels are cut in blocks of eight and only pairs of blocks A ≤ B are kept, each
  a dense 8×8 tile: 2304 products of two channels at d = 64 where the triangle has 2080 and the
  square 4096. In the sum above, blocks A < B count for both orders; blocks A = B are complete.
- Products x_a·x_b are computed rather than x_a·w: each is multiplied with every channel of w, which
  needs the fewest of them per tensor-core multiplication.
- All sums over the keys carry 1/N_k, so that nothing overflows and a row sum is near one.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.taylor_tiles import (
    centred,
    inverse_row_sum,
    kept,
    load_state,
    load_tile,
    locate,
    narrowed,
    product,
    row_scale_gradient,
    state_product,
    store_tile,
)


@triton.jit
def taylor_pairs_kernel(
    x, w, mask, weights, centre, scale, pairs, x_batch, x_token, x_head, x_channel, w_batch,
    w_token, w_head, w_channel, mask_batch, mask_token, heads, tokens, splits, split_length, rows,
    factor,
    DIM: tl.constexpr, W_DIM: tl.constexpr, W_WIDTH: tl.constexpr, SIDE: tl.constexpr,
    SQUARES: tl.constexpr, BLOCK: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
    CENTRED: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Tiles of S₂ of one pair of SIDE-wide channel blocks, one split of the tokens, one head.

    pairs: (splits, B·H, tiles of 8×8, 64, W_WIDTH), f·Σ_i β_i x̂_a x̂_b w_i.
    SQUARES is the number of such pairs, DIM/SIDE·(DIM/SIDE + 1)/2.
    """
    part, row, batch, head = locate(splits * SQUARES, heads)
    split = part // SQUARES
    square = part % SQUARES
    sides: tl.constexpr = (DIM + SIDE - 1) // SIDE
    upper = 0
    for _ in tl.static_range(sides - 1):
        # Rows of the triangle have sides, sides − 1, … squares.
        further = square >= sides - upper
        square = tl.where(further, square - (sides - upper), square)
        upper = tl.where(further, upper + 1, upper)
    lower = upper + square
    x += batch * x_batch + head * x_head
    w += batch * w_batch + head * w_head
    side = tl.arange(0, SIDE)
    left = upper * SIDE + side
    right = lower * SIDE + side
    accumulator = tl.zeros((SIDE * SIDE, W_WIDTH), tl.float32)
    first = split * split_length
    for start in range(first, tl.minimum(first + split_length, tokens), BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = kept(mask, mask_batch, mask_token, batch, index, tokens, MASKED)
        weight = tl.load(scale + row * tokens + index, mask=index < tokens, other=0.0)
        weight *= weight
        if WEIGHTED:
            weight *= tl.load(weights + row * tokens + index, mask=index < tokens, other=0.0)
        places = x + index.to(tl.int64)[None, :] * x_token
        one = tl.load(
            places + left.to(tl.int64)[:, None] * x_channel,
            mask=valid[None, :] & (left < DIM)[:, None],
            other=0.0,
        ).to(tl.float32)
        two = (
            tl.load(
                places + right.to(tl.int64)[:, None] * x_channel,
                mask=valid[None, :] & (right < DIM)[:, None],
                other=0.0,
            ).to(tl.float32)
            * weight[None, :]
        )
        features = tl.reshape(one[:, None, :] * two[None, :, :], (SIDE * SIDE, BLOCK))
        rest = load_tile(w, index, valid, w_token, w_channel, W_DIM, W_WIDTH)
        rest = centred(rest, centre, row, valid, W_WIDTH, CENTRED)
        accumulator = product(features, rest, accumulator, OPERAND)
    pair = tl.arange(0, SIDE * SIDE)
    a = upper * SIDE + pair // SIDE
    b = lower * SIDE + pair % SIDE
    blocks: tl.constexpr = (DIM + 7) // 8
    tiles: tl.constexpr = blocks * (blocks + 1) // 2
    wanted = (a // 8 <= b // 8) & (b // 8 < blocks)
    accumulator *= factor
    place = (split.to(tl.int64) * rows + row) * (tiles * 64) + pair_place(a, b, blocks)
    channel = tl.arange(0, W_WIDTH)
    pointers = pairs + place[:, None] * W_WIDTH + channel[None, :]
    tl.store(pointers, narrowed(accumulator, pairs.dtype.element_ty), mask=wanted[:, None])


@triton.jit
def pair_place(a, b, BLOCKS: tl.constexpr):
    """Row of channels (a, b) among a head's tiles; a's block of eight is at most b's."""
    tile = (a // 8) * BLOCKS - (a // 8) * (a // 8 - 1) // 2 + b // 8 - a // 8
    return tile * 64 + (a % 8) * 8 + b % 8


@triton.jit
def taylor_output_kernel(
    x, mask, scale, sums, moments, pairs, linear, square, counts, out, x_batch, x_token, x_head,
    x_channel, mask_batch, mask_token, heads, tokens, keys, blocks, eps,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, COUNTED: tl.constexpr, NORMALISE: tl.constexpr,
    OPERAND: tl.constexpr,
):  # fmt: skip
    """S₀ + S₁ᵀx̂ + ½x̂x̂:S₂ for one block of rows, over 1 + E₁x̂ + ½x̂ᵀE₂x̂ + eps if NORMALISE.

    NORMALISE makes the attention's output from queries; without it, value gradients come from keys,
    the sums being those of the queries. ``scale`` (B·H, N) is the rows' own.
    """
    block, row, batch, head = locate(blocks, heads)
    index = block * BLOCK + tl.arange(0, BLOCK)
    present = index < tokens
    valid = kept(mask, mask_batch, mask_token, batch, index, tokens, MASKED)
    x += batch * x_batch + head * x_head
    rows = load_tile(x, index, valid, x_token, x_channel, DIM, WIDTH)
    norm = tl.load(scale + row * tokens + index, mask=present, other=0.0)
    result = tl.zeros((BLOCK, VALUE_WIDTH), tl.float32)
    result = state_product(rows, load_state(moments, row, WIDTH, VALUE_WIDTH), result, OPERAND)
    result *= norm[:, None]
    if NORMALISE:
        shared = tl.zeros((BLOCK, WIDTH), tl.float32)
        shared = state_product(rows, load_state(square, row, WIDTH, WIDTH), shared, OPERAND)
        first = tl.load(linear + row * WIDTH + tl.arange(0, WIDTH))[None, :]
        below = first + shared * (0.5 * norm)[:, None]
        below = tl.sum(rows.to(tl.float32) * below, axis=1) * norm
    eights: tl.constexpr = (DIM + 7) // 8
    tiles: tl.constexpr = eights * (eights + 1) // 2
    eight = tl.arange(0, 8)
    channel = tl.arange(0, VALUE_WIDTH)
    pairs += row * (tiles * 64 * VALUE_WIDTH)
    state = pairs + tl.arange(0, 64)[:, None] * VALUE_WIDTH + channel[None, :]
    squared = norm * norm
    upper = 0
    lower = 0
    for _ in range(tiles):
        one = load_eight(x, index, valid, upper * 8 + eight, x_token, x_channel, DIM)
        two = load_eight(x, index, valid, lower * 8 + eight, x_token, x_channel, DIM)
        # ½ per pair; where the blocks differ, a pair counts for both orders.
        two *= tl.where(upper == lower, 0.5, 1.0) * squared[:, None]
        features = tl.reshape(one[:, :, None] * two[:, None, :], (BLOCK, 64))
        result = product(features, tl.load(state), result, OPERAND)
        state += 64 * VALUE_WIDTH
        last = lower == eights - 1
        upper = tl.where(last, upper + 1, upper)
        lower = tl.where(last, upper, lower + 1)
    result += tl.load(sums + row * VALUE_WIDTH + channel)[None, :]
    if NORMALISE:
        count = 1.0
        if COUNTED:
            count = tl.load(counts + batch) / keys
        result *= inverse_row_sum(below, count, eps)[:, None]
    else:
        result = tl.where(valid[:, None], result, 0.0)
    out += (batch * tokens * heads + head) * VALUE_DIM
    store_tile(out, result, index, present, heads * VALUE_DIM, VALUE_DIM, VALUE_WIDTH)


@triton.jit
def load_eight(x, index, valid, channel, x_token, x_channel, DIM: tl.constexpr):
    """Eight neighbouring channels of a block of rows, as float32."""
    wanted = valid[:, None]
    if DIM % 8 != 0:
        wanted = wanted & (channel < DIM)[None, :]
    pointers = x + index.to(tl.int64)[:, None] * x_token
    pointers += channel.to(tl.int64)[None, :] * x_channel
    return tl.load(pointers, mask=wanted, other=0.0).to(tl.float32)


@triton.jit
def taylor_gradient_kernel(
    x, w, mask, centre, scale, sums, moments, pairs, linear, square, counts, gradient, weights,
    offsets, x_batch, x_token, x_head, x_channel, w_batch, w_token, w_head, w_channel, mask_batch,
    mask_token, heads, tokens, keys, blocks, eps,
    DIM: tl.constexpr, W_DIM: tl.constexpr, WIDTH: tl.constexpr, W_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, QK_NORM: tl.constexpr, MASKED: tl.constexpr, COUNTED: tl.constexpr,
    QUERIES: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Gradient of one block of rows: c·(S₁w + Σ_b x̂_b S₂[·, b]w) + h·(E₁ + E₂x̂), then the norm's.

    QUERIES: x are queries, w the gradient of their outputs g, the sums those of the keys; then
    c = 1/D, D the row sum of ``taylor_output_kernel``, and h = −δ·c, where
    δ = ⟨g, U⟩·c follows from what is summed here, ⟨g, U⟩ = ⟨S₀, g⟩ + ⟨x̂, S₁g⟩ + ½⟨x̂, Σ_b x̂_b S₂g⟩,
    and so fits the sums exactly, which a stored output does not. c (weights) and h (offsets)
    (B·H, N) are stored. Else x are keys, w values, the sums those of the queries, c = h = 1.

    Values are taken less their mean, ``centre`` (B·H, W_WIDTH), also in the sums: no gradient but
    their own depends on it, yet ⟨g, v⟩ and δ would cancel in the rounded sums instead of here.
    """
    block, row, batch, head = locate(blocks, heads)
    index = block * BLOCK + tl.arange(0, BLOCK)
    present = index < tokens
    valid = kept(mask, mask_batch, mask_token, batch, index, tokens, MASKED)
    x += batch * x_batch + head * x_head
    w += batch * w_batch + head * w_head
    norm = tl.load(scale + row * tokens + index, mask=present, other=0.0)
    right = load_tile(w, index, valid, w_token, w_channel, W_DIM, W_WIDTH)
    right = centred(right, centre, row, valid, W_WIDTH, not QUERIES)
    result = tl.zeros((BLOCK, WIDTH), tl.float32)
    moment = tl.trans(load_state(moments, row, WIDTH, W_WIDTH))
    result = state_product(right, moment, result, OPERAND)
    right = right.to(tl.float32)
    rows = load_tile(x, index, valid, x_token, x_channel, DIM, WIDTH)
    zeroth = tl.zeros((BLOCK,), tl.float32)
    first_order = tl.zeros((BLOCK,), tl.float32)
    middle = tl.zeros((BLOCK,), tl.float32)
    if QUERIES:
        # Computed here, before w's registers are reused after the loop.
        place = row * W_WIDTH + tl.arange(0, W_WIDTH)
        zeroth = tl.sum(right * tl.load(sums + place)[None, :], axis=1)
        first_order = tl.sum(rows.to(tl.float32) * result, axis=1) * norm
        middle = tl.sum(right * tl.load(centre + place)[None, :], axis=1)
    eights: tl.constexpr = (DIM + 7) // 8
    tiles: tl.constexpr = eights * (eights + 1) // 2
    pairs += row * (tiles * 64 * W_WIDTH)
    a = tl.arange(0, WIDTH)
    column = x + index.to(tl.int64) * x_token
    for b in range(DIM):
        before = a // 8 <= b // 8
        pair = pair_place(tl.where(before, a, b), tl.where(before, b, a), eights)
        pointers = pairs + pair[:, None] * W_WIDTH + tl.arange(0, W_WIDTH)[None, :]
        state = tl.load(pointers, mask=(a < eights * 8)[:, None], other=0.0)
        own = tl.load(column + b * x_channel, mask=valid, other=0.0).to(tl.float32) * norm
        result = product(right * own[:, None], tl.trans(state), result, OPERAND)
    shared = tl.zeros((BLOCK, WIDTH), tl.float32)
    shared = state_product(rows, load_state(square, row, WIDTH, WIDTH), shared, OPERAND)
    shared *= norm[:, None]
    first = tl.load(linear + row * WIDTH + a)[None, :]
    rows = rows.to(tl.float32)
    if QUERIES:
        count = 1.0
        if COUNTED:
            count = tl.load(counts + batch) / keys
        below = tl.sum(rows * (first + 0.5 * shared), axis=1) * norm
        inverse = inverse_row_sum(below, count, eps)
        # x̂·result holds the first order once and the second twice.
        both = tl.sum(rows * result, axis=1) * norm
        # eps pulls the output towards zero, not towards the centre.
        delta = zeroth + 0.5 * (first_order + both) - middle * (count * eps)
        offset = -delta * inverse * inverse
        result = result * inverse[:, None] + (first + shared) * offset[:, None]
        tl.store(weights + row * tokens + index, inverse, mask=present)
        tl.store(offsets + row * tokens + index, offset, mask=present)
    else:
        result += first + shared
    result = row_scale_gradient(rows, norm, result, QK_NORM)
    gradient += (batch * tokens * heads + head) * DIM
    store_tile(gradient, result, index, present, heads * DIM, DIM, WIDTH)
