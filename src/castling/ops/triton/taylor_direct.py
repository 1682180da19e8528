"""Exact Taylor attention in tiles of the N×N similarity: p = 1 + z + z²/2, no exponential.

- p ≥ ½ and grows only quadratically: no running maximum, no rescaling, one plain loop over keys.
- Only r = p − 1 is multiplied with the values in half precision; the ones are Σ_j v_j, summed in
  float32. So rounding is relative to r, which is small for unit rows.
- A masked key is loaded as zero: then r = 0 and the similarity needs no mask.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.taylor_tiles import (
    inverse_row_sum,
    kept,
    load_state,
    load_tile,
    locate,
    product,
    raw_product,
    row_scale,
    row_scale_gradient,
    state_product,
    store_tile,
)


@triton.jit
def taylor_direct_forward_kernel(
    query, key, value, mask, key_scale, value_sums, counts, out,
    query_batch, query_token, query_head, query_channel,
    key_batch, key_token, key_head, key_channel,
    value_batch, value_token, value_head, value_channel,
    mask_batch, mask_token,
    heads, queries, keys, tiles, eps,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    QK_NORM: tl.constexpr, MASKED: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """out_i = (Σ_j v_j + Σ_j r_ij v_j) / (N + Σ_j r_ij + N·eps) for one tile of queries.

    key_scale (B·H, N_k) and value_sums (B·H, VALUE_WIDTH) come from ``taylor_rows_kernel``;
    counts (B,) are the keys that take part (only read when MASKED).
    """
    tile, row, batch, head = locate(tiles, heads)
    tokens = tile * QUERY_BLOCK + tl.arange(0, QUERY_BLOCK)
    present = tokens < queries
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    rows = load_tile(query, tokens, present, query_token, query_channel, DIM, WIDTH)
    scale = row_scale(rows.to(tl.float32), present, eps, DIM, QK_NORM)
    half = 0.5 * scale * scale
    above = tl.zeros((QUERY_BLOCK, VALUE_WIDTH), tl.float32)
    below = tl.zeros((QUERY_BLOCK,), tl.float32)
    for start in range(0, keys, KEY_BLOCK):
        other = start + tl.arange(0, KEY_BLOCK)
        valid = kept(mask, mask_batch, mask_token, batch, other, keys, MASKED)
        k = load_tile(key, other, valid, key_token, key_channel, DIM, WIDTH)
        v = load_tile(value, other, valid, value_token, value_channel, VALUE_DIM, VALUE_WIDTH)
        k_scale = tl.load(key_scale + row * keys + other, mask=other < keys, other=0.0)
        z = raw_product(rows, tl.trans(k)) * k_scale[None, :]
        # z still lacks the query's norm: s·z + s²·z²/2.
        r = z * (scale[:, None] + half[:, None] * z)
        below += tl.sum(r, axis=1)
        above = product(r, v, above, OPERAND)
    count = keys * 1.0
    if MASKED:
        count = tl.load(counts + batch)
    above += tl.load(value_sums + row * VALUE_WIDTH + tl.arange(0, VALUE_WIDTH))[None, :]
    above *= inverse_row_sum(below, count, eps)[:, None]
    out += (batch * queries * heads + head) * VALUE_DIM
    store_tile(out, above, tokens, present, heads * VALUE_DIM, VALUE_DIM, VALUE_WIDTH)


@triton.jit
def taylor_direct_query_gradient_kernel(
    query, key, value, mask, key_scale, square, linear, counts, out, gradient, query_gradient,
    weights, offsets,
    query_batch, query_token, query_head, query_channel,
    key_batch, key_token, key_head, key_channel,
    value_batch, value_token, value_head, value_channel,
    mask_batch, mask_token,
    gradient_batch, gradient_token, gradient_head, gradient_channel,
    heads, queries, keys, tiles, eps,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    QK_NORM: tl.constexpr, MASKED: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Gradient of one tile of queries, and c_i and h_i of each query for the keys' pass.

    With D_i = (Σ_j p_ij + N·eps)/N_k, c = 1/D and δ_i = ⟨g_i, out_i⟩:
    dz_ij = (1 + z_ij)(⟨g_i, v_j⟩ − δ_i)·c_i/N_k, and h = −δ·c.

    ``out`` was rounded when it was stored, and its error δ̃ − δ is the same for every key, so it
    would not average out: (δ − δ̃)/c = Σ_j p_ij(⟨g_i, v_j⟩ − δ̃_i)/N_k − δ̃·N·eps/N_k is summed on the
    way and its share of the gradient, (δ − δ̃)·c·(linear + square·q̂), taken off at the end, where
    linear = Σk̂/N_k (B·H, WIDTH) and square = Σk̂k̂ᵀ/N_k (B·H, WIDTH, WIDTH) give D as well.
    """
    tile, row, batch, head = locate(tiles, heads)
    tokens = tile * QUERY_BLOCK + tl.arange(0, QUERY_BLOCK)
    present = tokens < queries
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    gradient += batch * gradient_batch + head * gradient_head
    out += (batch * queries * heads + head) * VALUE_DIM
    rows = load_tile(query, tokens, present, query_token, query_channel, DIM, WIDTH)
    scale = row_scale(rows.to(tl.float32), present, eps, DIM, QK_NORM)
    g = load_tile(
        gradient, tokens, present, gradient_token, gradient_channel, VALUE_DIM, VALUE_WIDTH
    )
    saved = load_tile(out, tokens, present, heads * VALUE_DIM, 1, VALUE_DIM, VALUE_WIDTH)
    delta = tl.sum(g.to(tl.float32) * saved.to(tl.float32), axis=1)
    correction = tl.zeros((QUERY_BLOCK,), tl.float32)
    accumulator = tl.zeros((QUERY_BLOCK, WIDTH), tl.float32)
    for start in range(0, keys, KEY_BLOCK):
        other = start + tl.arange(0, KEY_BLOCK)
        valid = kept(mask, mask_batch, mask_token, batch, other, keys, MASKED)
        k = load_tile(key, other, valid, key_token, key_channel, DIM, WIDTH)
        v = load_tile(value, other, valid, value_token, value_channel, VALUE_DIM, VALUE_WIDTH)
        k_scale = tl.load(key_scale + row * keys + other, mask=other < keys, other=0.0)
        z = raw_product(rows, tl.trans(k)) * (scale[:, None] * k_scale[None, :])
        slope = raw_product(g, tl.trans(v)) - delta[:, None]
        slope = tl.where(valid[None, :], slope, 0.0)
        correction += tl.sum((1.0 + z * (1.0 + 0.5 * z)) * slope, axis=1)
        accumulator = product((1.0 + z) * slope * k_scale[None, :], k, accumulator, OPERAND)
    count = 1.0
    if MASKED:
        count = tl.load(counts + batch) / keys
    shared = tl.zeros((QUERY_BLOCK, WIDTH), tl.float32)
    shared = state_product(rows, load_state(square, row, WIDTH, WIDTH), shared, OPERAND)
    shared *= scale[:, None]
    rows = rows.to(tl.float32)
    first = tl.load(linear + row * WIDTH + tl.arange(0, WIDTH))[None, :]
    below = tl.sum(rows * (first + 0.5 * shared), axis=1) * scale
    inverse = inverse_row_sum(below, count, eps)
    correction = (correction / keys - delta * count * eps) * inverse
    result = accumulator * (inverse / keys)[:, None]
    result -= (first + shared) * (correction * inverse)[:, None]
    result = row_scale_gradient(rows, scale, result, QK_NORM)
    query_gradient += (batch * queries * heads + head) * DIM
    store_tile(query_gradient, result, tokens, present, heads * DIM, DIM, WIDTH)
    tl.store(weights + row * queries + tokens, inverse, mask=present)
    tl.store(offsets + row * queries + tokens, -(delta + correction) * inverse, mask=present)


@triton.jit
def taylor_direct_key_gradient_kernel(
    query, key, value, mask, query_scale, weights, offsets, gradient_sums, gradient,
    key_gradient, value_gradient,
    query_batch, query_token, query_head, query_channel,
    key_batch, key_token, key_head, key_channel,
    value_batch, value_token, value_head, value_channel,
    mask_batch, mask_token,
    gradient_batch, gradient_token, gradient_head, gradient_channel,
    heads, queries, keys, tiles, eps,
    DIM: tl.constexpr, VALUE_DIM: tl.constexpr, WIDTH: tl.constexpr, VALUE_WIDTH: tl.constexpr,
    QUERY_BLOCK: tl.constexpr, KEY_BLOCK: tl.constexpr,
    QK_NORM: tl.constexpr, MASKED: tl.constexpr, OPERAND: tl.constexpr,
):  # fmt: skip
    """Gradients of one tile of keys and values, from c (weights) and h (offsets) of every query.

    dv_j = Σ_i p_ij c_i g_i/N_k; dk̂_j = Σ_i (1 + z_ij)(⟨g_i, v_j⟩c_i + h_i) q̂_i/N_k. The ones of p
    are again apart, as gradient_sums = Σ_i c_i g_i (B·H, VALUE_WIDTH).
    """
    tile, row, batch, head = locate(tiles, heads)
    tokens = tile * KEY_BLOCK + tl.arange(0, KEY_BLOCK)
    present = tokens < keys
    valid = kept(mask, mask_batch, mask_token, batch, tokens, keys, MASKED)
    query += batch * query_batch + head * query_head
    key += batch * key_batch + head * key_head
    value += batch * value_batch + head * value_head
    gradient += batch * gradient_batch + head * gradient_head
    k = load_tile(key, tokens, valid, key_token, key_channel, DIM, WIDTH)
    v = load_tile(value, tokens, valid, value_token, value_channel, VALUE_DIM, VALUE_WIDTH)
    scale = row_scale(k.to(tl.float32), valid, eps, DIM, QK_NORM)
    key_sum = tl.zeros((KEY_BLOCK, WIDTH), tl.float32)
    value_sum = tl.zeros((KEY_BLOCK, VALUE_WIDTH), tl.float32)
    for start in range(0, queries, QUERY_BLOCK):
        other = start + tl.arange(0, QUERY_BLOCK)
        there = other < queries
        q = load_tile(query, other, there, query_token, query_channel, DIM, WIDTH)
        g = load_tile(
            gradient, other, there, gradient_token, gradient_channel, VALUE_DIM, VALUE_WIDTH
        )
        place = row * queries + other
        q_scale = tl.load(query_scale + place, mask=there, other=0.0)
        weight = tl.load(weights + place, mask=there, other=0.0)
        offset = tl.load(offsets + place, mask=there, other=0.0)
        z = raw_product(k, tl.trans(q)) * (scale[:, None] * q_scale[None, :])
        slope = raw_product(v, tl.trans(g)) * weight[None, :] + offset[None, :]
        value_sum = product(z * (1.0 + 0.5 * z) * weight[None, :], g, value_sum, OPERAND)
        key_sum = product((1.0 + z) * slope * q_scale[None, :], q, key_sum, OPERAND)
    ones = tl.load(gradient_sums + row * VALUE_WIDTH + tl.arange(0, VALUE_WIDTH))
    value_sum = tl.where(valid[:, None], (value_sum + ones[None, :]) / keys, 0.0)
    result = row_scale_gradient(k.to(tl.float32), scale, key_sum / keys, QK_NORM)
    key_gradient += (batch * keys * heads + head) * DIM
    value_gradient += (batch * keys * heads + head) * VALUE_DIM
    store_tile(key_gradient, result, tokens, present, heads * DIM, DIM, WIDTH)
    store_tile(
        value_gradient, value_sum, tokens, present, heads * VALUE_DIM, VALUE_DIM, VALUE_WIDTH
    )
