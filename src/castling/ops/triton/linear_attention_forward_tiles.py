"""The two halves of linear attention on tiles: sum the keys to a state, apply it to queries.

A state is [S (d × d_v) | z (d) | m (d_v)] per head: unscaled float32 sums over the keys.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.features import feature_parts
from castling.ops.triton.local_convolution import add_taps, kept_tokens
from castling.ops.triton.tiles import (
    load_rows,
    multiply,
    row_sums,
    safe_inverse,
    safe_rsqrt,
    split,
    spread,
    store_rows,
)


@triton.jit
def state_offsets(
    GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr,
    KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr,
    VALUE_WIDTH: tl.constexpr,
):
    """Offsets of S, z and m of a group of heads from its first head, and masks without padding.

    A group's product is (GROUP·KEY_WIDTH, GROUP·VALUE_WIDTH), with each head's S on the diagonal.
    """
    numbers: tl.constexpr = KEY_DIM * VALUE_DIM + KEY_DIM + VALUE_DIM
    row = tl.arange(0, GROUP * KEY_WIDTH)
    column = tl.arange(0, GROUP * VALUE_WIDTH)
    key_head = row // KEY_WIDTH
    key_channel = row % KEY_WIDTH
    value_head = column // VALUE_WIDTH
    value_channel = column % VALUE_WIDTH
    of_matrix = (key_head * numbers + key_channel * VALUE_DIM)[:, None] + value_channel[None, :]
    of_key_sum = key_head * numbers + KEY_DIM * VALUE_DIM + key_channel
    of_value_sum = value_head * numbers + KEY_DIM * VALUE_DIM + KEY_DIM + value_channel
    key_real = key_channel < KEY_DIM
    value_real = value_channel < VALUE_DIM
    real = (key_head[:, None] == value_head[None, :]) & key_real[:, None] & value_real[None, :]
    return of_matrix, real, of_key_sum, key_real, of_value_sum, value_real


@triton.jit
def load_state(
    base, NEED_KEY_SUM: tl.constexpr, NEED_VALUE_SUM: tl.constexpr, GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """S, z and m of the group of heads whose first state is at ``base``; sums not needed are 0."""
    of_matrix, real, of_key_sum, key_real, of_value_sum, value_real = state_offsets(
        GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH
    )
    matrix = tl.load(base + of_matrix, mask=real, other=0.0)
    key_sum = tl.zeros((GROUP * KEY_WIDTH,), tl.float32)
    value_sum = tl.zeros((GROUP * VALUE_WIDTH,), tl.float32)
    if NEED_KEY_SUM:
        key_sum = tl.load(base + of_key_sum, mask=key_real, other=0.0)
    if NEED_VALUE_SUM:
        value_sum = tl.load(base + of_value_sum, mask=value_real, other=0.0)
    return matrix, key_sum, value_sum


@triton.jit
def store_state(
    base, matrix, key_sum, value_sum, GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Write what :func:`load_state` reads."""
    of_matrix, real, of_key_sum, key_real, of_value_sum, value_real = state_offsets(
        GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH
    )
    tl.store(base + of_matrix, matrix, mask=real)
    tl.store(base + of_key_sum, key_sum, mask=key_real)
    tl.store(base + of_value_sum, value_sum, mask=value_real)


@triton.jit
def sample_scales(
    counts, batch, scalar, keys, kv_scale, alpha,
    HAS_MASK: tl.constexpr, HAS_SCALAR: tl.constexpr,
):  # fmt: skip
    """N (keys that take part), s (kv_scale, or 1/N where that is 0) and a = alpha + scalar²."""
    count = keys
    if HAS_MASK:
        count = tl.load(counts + batch)
    scale = tl.where(kv_scale > 0.0, kv_scale, 1.0 / tl.maximum(count, 1.0))
    constant = alpha
    if HAS_SCALAR:
        number = tl.load(scalar).to(tl.float32)
        constant = alpha + number * number
    return count, scale, constant


@triton.jit
def sum_keys(
    key_base, value_base, mask_base, begin, end,
    key_token, value_token, mask_token, key_columns, value_columns, eps,
    FEATURES: tl.constexpr, NEED_KEY_SUM: tl.constexpr, NEED_VALUE_SUM: tl.constexpr,
    HAS_MASK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """S = Σ φ(k)vᵀ, z = Σ φ(k), m = Σ v over tokens begin … end − 1, in float32."""
    matrix = tl.zeros((GROUP * KEY_WIDTH, GROUP * VALUE_WIDTH), tl.float32)
    key_sum = tl.zeros((GROUP * KEY_WIDTH,), tl.float32)
    value_sum = tl.zeros((GROUP * VALUE_WIDTH,), tl.float32)
    # A raw key without a norm is exact as an operand.
    raw: tl.constexpr = EXACT and (FEATURES == "relu" or FEATURES == "identity")
    for start in range(begin, end, ROWS):
        tokens = start + tl.arange(0, ROWS)
        valid = kept_tokens(mask_base, tokens, tokens < end, mask_token, HAS_MASK)
        key = load_rows(key_base, tokens, valid, key_token, key_columns, KEY_DIM, KEY_WIDTH)
        value = load_rows(
            value_base, tokens, valid, value_token, value_columns, VALUE_DIM, VALUE_WIDTH
        )
        base, scale = feature_parts(key, valid, eps, FEATURES, ROWS, GROUP, KEY_WIDTH)
        if FEATURES == "unit":
            base = base * spread(scale, ROWS, GROUP, KEY_WIDTH)
        key_high, key_low = split(base, PRECISION)
        value_high, value_low = split(value, PRECISION)
        matrix = multiply(
            tl.trans(key_high), tl.trans(key_low), value_high, value_low, matrix,
            raw, EXACT, PRECISION,
        )  # fmt: skip
        if NEED_KEY_SUM:
            key_sum += tl.sum(base, axis=0)
        if NEED_VALUE_SUM:
            value_sum += tl.sum(value, axis=0)
    return matrix, key_sum, value_sum


@triton.jit
def attend(
    base_high, base_low, matrix_high, matrix_low, scale, value_sum,
    source_base, mask_base, tokens, valid, source_token, mask_token, source_columns,
    attention_scale, constant_scale, identity,
    IDENTITY: tl.constexpr, HAS_CONSTANT: tl.constexpr, HAS_MASK: tl.constexpr,
    RAW: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """A tile of x = identity·source + s·(γ·φ(q)ᵀS + a·m), before it is normalised."""
    result = tl.zeros((ROWS, GROUP * VALUE_WIDTH), tl.float32)
    result = multiply(base_high, base_low, matrix_high, matrix_low, result, RAW, False, PRECISION)
    result = result * spread(scale * attention_scale, ROWS, GROUP, VALUE_WIDTH)
    if HAS_CONSTANT:
        result += (constant_scale * value_sum)[None, :]
    if IDENTITY != "none":
        if IDENTITY == "value":
            valid = kept_tokens(mask_base, tokens, valid, mask_token, HAS_MASK)
        result += identity * load_rows(
            source_base, tokens, valid, source_token, source_columns, VALUE_DIM, VALUE_WIDTH
        )
    return result


@triton.jit
def row_total(
    base, scale, key_sum, attention_scale, constant,
    ROWS: tl.constexpr, GROUP: tl.constexpr, KEY_WIDTH: tl.constexpr,
):  # fmt: skip
    """The row sum s·γ·φ(q)ᵀz + constant: (ROWS, GROUP)."""
    total = row_sums(base * key_sum[None, :], ROWS, GROUP, KEY_WIDTH) * scale
    return attention_scale * total + constant


@triton.jit
def write_outputs(
    query_base, value_base, residual_base, weight, mask_base, out_base,
    matrix, key_sum, value_sum, begin, end, queries,
    query_token, value_token, residual_token, mask_token, out_token,
    query_columns, value_columns, residual_columns, out_columns, filters,
    attention_scale, constant_scale, identity, denominator, eps, row_eps,
    prefix, grid_height, grid_width,
    FEATURES: tl.constexpr, NORMALIZE: tl.constexpr, IDENTITY: tl.constexpr,
    HAS_CONSTANT: tl.constexpr, HAS_MASK: tl.constexpr, LOCAL: tl.constexpr, SIZE: tl.constexpr,
    TAPS: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Outputs of queries begin … end − 1 from a complete state.

    ``attention_scale`` is s·γ, ``constant_scale`` s·a, ``denominator`` s·a·N.
    """
    # φ of "squares" is computed, not loaded, and rounded like the state.
    raw: tl.constexpr = EXACT and FEATURES != "squares"
    matrix_high, matrix_low = split(matrix, PRECISION)
    for start in range(begin, end, ROWS):
        tokens = start + tl.arange(0, ROWS)
        valid = tokens < end
        query = load_rows(query_base, tokens, valid, query_token, query_columns, KEY_DIM, KEY_WIDTH)
        base, scale = feature_parts(query, valid, eps, FEATURES, ROWS, GROUP, KEY_WIDTH)
        base_high, base_low = split(base, PRECISION)
        source_base = value_base
        source_token = value_token
        source_columns = value_columns
        if IDENTITY == "residual":
            source_base = residual_base
            source_token = residual_token
            source_columns = residual_columns
        result = attend(
            base_high, base_low, matrix_high, matrix_low, scale, value_sum,
            source_base, mask_base, tokens, valid, source_token, mask_token, source_columns,
            attention_scale, constant_scale, identity,
            IDENTITY, HAS_CONSTANT, HAS_MASK, raw, PRECISION, ROWS, GROUP, VALUE_DIM, VALUE_WIDTH,
        )  # fmt: skip
        if NORMALIZE == "l2":
            inverse = safe_rsqrt(row_sums(result * result, ROWS, GROUP, VALUE_WIDTH), eps)
            result = result * spread(inverse, ROWS, GROUP, VALUE_WIDTH)
        if NORMALIZE == "rowsum":
            inverse = safe_inverse(
                row_total(
                    base, scale, key_sum, attention_scale, denominator + row_eps,
                    ROWS, GROUP, KEY_WIDTH,
                )
            )  # fmt: skip
            result = result * spread(inverse, ROWS, GROUP, VALUE_WIDTH)
        if LOCAL != "none":
            # Summed separately: otherwise each tap would be converted to the product's layout.
            taps = tl.zeros((ROWS, GROUP * VALUE_WIDTH), tl.float32)
            result += add_taps(
                taps, value_base, mask_base, weight, tokens, valid, value_token, mask_token,
                value_columns, filters, queries, prefix, grid_height, grid_width,
                HAS_MASK, LOCAL, SIZE, TAPS, VALUE_DIM, VALUE_WIDTH,
            )  # fmt: skip
        store_rows(out_base, result, tokens, valid, out_token, out_columns, VALUE_DIM, VALUE_WIDTH)
