"""Sums over the tokens for both orders of the exact Taylor attention, O(N·d·d_v).

Partial sums of each split of the tokens are stored, then added in a fixed order: no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.taylor_tiles import (
    centred,
    kept,
    load_tile,
    locate,
    operand,
    product,
    row_scale,
)


@triton.jit
def taylor_rows_kernel(
    x, w, mask, weights, scale, sums, x_batch, x_token, x_head, x_channel, w_batch, w_token,
    w_head, w_channel, mask_batch, mask_token, heads, tokens, splits, split_length, rows, eps,
    DIM: tl.constexpr, W_DIM: tl.constexpr, WIDTH: tl.constexpr, W_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, QK_NORM: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr,
):  # fmt: skip
    """Make scale (B·H, N), s of x̂ = s·x, zero where masked, and sums Σ_i c_i w_i.

    sums: (splits, B·H, W_WIDTH). c is ``weights`` (B·H, N) if WEIGHTED, else 1.
    """
    split, row, batch, head = locate(splits, heads)
    x += batch * x_batch + head * x_head
    w += batch * w_batch + head * w_head
    total = tl.zeros((BLOCK, W_WIDTH), tl.float32)
    first = split * split_length
    for start in range(first, tl.minimum(first + split_length, tokens), BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = kept(mask, mask_batch, mask_token, batch, index, tokens, MASKED)
        tile = load_tile(x, index, valid, x_token, x_channel, DIM, WIDTH).to(tl.float32)
        norm = row_scale(tile, valid, eps, DIM, QK_NORM)
        tl.store(scale + row * tokens + index, norm, mask=index < tokens)
        tile = load_tile(w, index, valid, w_token, w_channel, W_DIM, W_WIDTH).to(tl.float32)
        if WEIGHTED:
            weight = tl.load(weights + row * tokens + index, mask=index < tokens, other=0.0)
            tile *= weight[:, None]
        total += tile
    place = (split.to(tl.int64) * rows + row) * W_WIDTH + tl.arange(0, W_WIDTH)
    tl.store(sums + place, tl.sum(total, axis=0))


@triton.jit
def taylor_moment_kernel(
    x, w, mask, weights, centre, scale, moments, sums, x_batch, x_token, x_head, x_channel,
    w_batch, w_token, w_head, w_channel, mask_batch, mask_token, heads, tokens, splits,
    split_length, rows, factor,
    DIM: tl.constexpr, W_DIM: tl.constexpr, WIDTH: tl.constexpr, W_WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, MASKED: tl.constexpr, WEIGHTED: tl.constexpr, CENTRED: tl.constexpr,
    OWN: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Make moments (splits, B·H, WIDTH, W_WIDTH): f·Σ_i β_i x̂_i w_iᵀ, and sums: f·Σ_i β_i w_i.

    sums: (splits, B·H, W_WIDTH). β is ``weights`` (B·H, N) if WEIGHTED, else 1; w is taken less
    ``centre`` if CENTRED. With OWN, w is x and takes its scale too: f·Σ β x̂x̂ᵀ and f·Σ β x̂.
    """
    split, row, batch, head = locate(splits, heads)
    x += batch * x_batch + head * x_head
    w += batch * w_batch + head * w_head
    moment = tl.zeros((WIDTH, W_WIDTH), tl.float32)
    total = tl.zeros((W_WIDTH,), tl.float32)
    first = split * split_length
    for start in range(first, tl.minimum(first + split_length, tokens), BLOCK):
        index = start + tl.arange(0, BLOCK)
        valid = kept(mask, mask_batch, mask_token, batch, index, tokens, MASKED)
        left = load_tile(x, index, valid, x_token, x_channel, DIM, WIDTH).to(tl.float32)
        right = load_tile(w, index, valid, w_token, w_channel, W_DIM, W_WIDTH)
        # Rounded before both sums, so that these and the pairs are sums of the same values: their
        # common error shifts the output, which affects the gradient of the values only.
        right = operand(centred(right, centre, row, valid, W_WIDTH, CENTRED), OPERAND)
        norm = tl.load(scale + row * tokens + index, mask=index < tokens, other=0.0)
        weight = tl.where(valid, 1.0, 0.0)
        if WEIGHTED:
            weight *= tl.load(weights + row * tokens + index, mask=index < tokens, other=0.0)
        if OWN:
            weight *= norm
        total += tl.sum(right.to(tl.float32) * weight[:, None], axis=0)
        left *= (weight * norm)[:, None]
        high = operand(left, OPERAND)
        if (OPERAND == "bf16") or (OPERAND == "fp16"):
            low = left - high.to(tl.float32)
            moment = product(tl.trans(low), right, moment, OPERAND)
        moment = product(tl.trans(high), right, moment, OPERAND)
    channel = tl.arange(0, W_WIDTH)
    place = split.to(tl.int64) * rows + row
    tl.store(sums + place * W_WIDTH + channel, total * factor)
    moments += place * (WIDTH * W_WIDTH)
    pointers = moments + tl.arange(0, WIDTH)[:, None] * W_WIDTH + channel[None, :]
    tl.store(pointers, moment * factor)
