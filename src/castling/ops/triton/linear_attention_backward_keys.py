"""Second backward kernel of linear attention: the pass over the keys.

It computes the gradients of keys and values from that of the state, and takes the outputs' gradient
through the convolution: the rows gathered for the values are used for the filters too.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.features import feature_gradient, feature_parts
from castling.ops.triton.linear_attention_forward_tiles import load_state, sample_scales
from castling.ops.triton.local_convolution import (
    add_taps_and_filter_gradient,
    filter_offsets,
    kept_tokens,
)
from castling.ops.triton.tiles import (
    column_offsets,
    load_rows,
    multiply,
    split,
    spread,
    store_rows,
)


@triton.jit
def linear_attention_bwd_kernel_keys(
    grad_out, key, value, weight, mask, counts, scalar, value_share, d_state, value_shifts,
    d_key, d_value, filter_parts,
    keys, heads, groups, blocks, block_keys,
    grad_out_batch, grad_out_token, grad_out_head, grad_out_channel,
    key_batch, key_token, key_head, key_channel,
    value_batch, value_token, value_head, value_channel,
    mask_batch, mask_token, all_keys, kv_scale, gamma, alpha, eps, prefix, grid_height, grid_width,
    FEATURES: tl.constexpr, NORMALIZE: tl.constexpr, HAS_SHARE: tl.constexpr,
    HAS_CONSTANT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SCALAR: tl.constexpr,
    LOCAL: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr, PADDED_TAPS: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """One block of one sample's keys from the complete ``d_state``; grid (batch·blocks·groups,).

    ``filter_parts`` (batch, blocks, groups, TAPS, GROUP·VALUE_WIDTH) are float32 sums.
    """
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    head = (program % groups).to(tl.int64) * GROUP
    begin = (program // groups % blocks) * block_keys
    end = tl.minimum(begin + block_keys, keys)
    batch = (program // groups // blocks).to(tl.int64)
    numbers: tl.constexpr = KEY_DIM * VALUE_DIM + KEY_DIM + VALUE_DIM
    raw: tl.constexpr = EXACT and FEATURES != "squares"
    matrix, key_sum, value_sum = load_state(
        d_state + (batch * heads + head) * numbers, NORMALIZE == "rowsum", HAS_CONSTANT,
        GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip
    _, sample_scale, constant = sample_scales(
        counts, batch, scalar, all_keys, kv_scale, alpha, HAS_MASK, HAS_SCALAR
    )
    matrix_high, matrix_low = split(matrix * (sample_scale * gamma), PRECISION)
    key_sum = key_sum * (sample_scale * gamma)
    value_sum = value_sum * (sample_scale * constant)
    if NORMALIZE == "rowsum":
        shift_columns = column_offsets(VALUE_DIM, 1, GROUP, VALUE_WIDTH)
        shift_pointers = value_shifts + (batch * heads + head) * VALUE_DIM + shift_columns
        shift_real = tl.arange(0, GROUP * VALUE_WIDTH) % VALUE_WIDTH < VALUE_DIM
        if EXACT:
            # Raw values are exact as operands, centred ones are not: instead, subtract the shift's
            # product with the same two parts of the state.
            rounded = matrix_high.to(tl.float32) + matrix_low.to(tl.float32)
            shift = tl.load(shift_pointers, mask=shift_real, other=0.0)
            key_sum -= tl.sum(rounded * shift[None, :], axis=1)
    mask_base = mask
    if HAS_MASK:
        mask_base = mask + batch * mask_batch
    key_columns = column_offsets(key_head, key_channel, GROUP, KEY_WIDTH)
    value_columns = column_offsets(value_head, value_channel, GROUP, VALUE_WIDTH)
    d_key_columns = column_offsets(KEY_DIM, 1, GROUP, KEY_WIDTH)
    d_value_columns = column_offsets(VALUE_DIM, 1, GROUP, VALUE_WIDTH)
    first = batch * keys * heads + head
    filter_gradient = tl.zeros((PADDED_TAPS, GROUP * VALUE_WIDTH), tl.float32)
    grad_base = grad_out
    grad_columns = d_value_columns
    filters = d_value_columns
    if LOCAL != "none":
        grad_base = grad_out + batch * grad_out_batch + head * grad_out_head
        grad_columns = column_offsets(grad_out_head, grad_out_channel, GROUP, VALUE_WIDTH)
        filters = filter_offsets(head, TAPS, LOCAL, GROUP, VALUE_DIM, VALUE_WIDTH)
    for start in range(begin, end, ROWS):
        tokens = start + tl.arange(0, ROWS)
        inside = tokens < end
        valid = kept_tokens(mask_base, tokens, inside, mask_token, HAS_MASK)
        row = load_rows(
            key + batch * key_batch + head * key_head,
            tokens, valid, key_token, key_columns, KEY_DIM, KEY_WIDTH,
        )  # fmt: skip
        values = load_rows(
            value + batch * value_batch + head * value_head,
            tokens, valid, value_token, value_columns, VALUE_DIM, VALUE_WIDTH,
        )  # fmt: skip
        base, scale = feature_parts(row, valid, eps, FEATURES, ROWS, GROUP, KEY_WIDTH)
        centred = values
        if NORMALIZE == "rowsum" and not EXACT:
            # Loaded again for each tile: held, it would take registers that there are not.
            centred = values - tl.load(shift_pointers, mask=shift_real, other=0.0)[None, :]
        high, low = split(centred, PRECISION)
        d_row = tl.zeros((ROWS, GROUP * KEY_WIDTH), tl.float32)
        d_row = multiply(
            high, low, tl.trans(matrix_high), tl.trans(matrix_low), d_row, EXACT, False, PRECISION
        )
        if NORMALIZE == "rowsum":
            d_row += key_sum[None, :]
        d_row = feature_gradient(
            row, base, scale, d_row * spread(scale, ROWS, GROUP, KEY_WIDTH), eps,
            FEATURES, ROWS, GROUP, KEY_WIDTH,
        )  # fmt: skip
        store_rows(
            d_key + first * KEY_DIM, tl.where(valid[:, None], d_row, 0.0), tokens, inside,
            heads * KEY_DIM, d_key_columns, KEY_DIM, KEY_WIDTH,
        )  # fmt: skip
        high, low = split(base, PRECISION)
        d_values = tl.zeros((ROWS, GROUP * VALUE_WIDTH), tl.float32)
        d_values = multiply(high, low, matrix_high, matrix_low, d_values, raw, False, PRECISION)
        d_values = d_values * spread(scale, ROWS, GROUP, VALUE_WIDTH)
        if HAS_CONSTANT:
            d_values += value_sum[None, :]
        if HAS_SHARE:
            d_values += load_rows(
                value_share + first * VALUE_DIM, tokens, valid,
                heads * VALUE_DIM, d_value_columns, VALUE_DIM, VALUE_WIDTH,
            )  # fmt: skip
        if LOCAL != "none":
            taps = tl.zeros((ROWS, GROUP * VALUE_WIDTH), tl.float32)
            taps, filter_gradient = add_taps_and_filter_gradient(
                taps, filter_gradient, values, grad_base, weight, tokens, valid,
                grad_out_token, grad_columns, filters, keys, prefix, grid_height, grid_width,
                LOCAL, SIZE, TAPS, PADDED_TAPS, VALUE_DIM, VALUE_WIDTH,
            )  # fmt: skip
            d_values += taps
        store_rows(
            d_value + first * VALUE_DIM, tl.where(valid[:, None], d_values, 0.0), tokens, inside,
            heads * VALUE_DIM, d_value_columns, VALUE_DIM, VALUE_WIDTH,
        )  # fmt: skip
    if LOCAL != "none":
        columns: tl.constexpr = GROUP * VALUE_WIDTH
        slot = tl.num_programs(0) - 1 - tl.program_id(0)
        tap = tl.arange(0, PADDED_TAPS)[:, None]
        place = tap * columns + tl.arange(0, columns)[None, :]
        filter_base = filter_parts + slot.to(tl.int64) * (TAPS * columns)
        tl.store(filter_base + place, filter_gradient, mask=tap < TAPS)
