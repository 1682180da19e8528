"""Forward kernels of linear attention: one launch for short sequences, two for long ones.

- ``…_single``: one program per sample and group of heads; the state never leaves the registers.
- ``…_state`` over splits of the keys, then ``…_output`` over blocks of queries, last sample first:
  what the state pass read last is still in the L2 cache.
- Neighbouring programs have neighbouring heads: together they read whole rows of a projection.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.linear_attention_forward_tiles import (
    load_state,
    sample_scales,
    store_state,
    sum_keys,
    write_outputs,
)
from castling.ops.triton.local_convolution import filter_offsets
from castling.ops.triton.tiles import column_offsets


@triton.jit
def linear_attention_fwd_kernel_single(
    query, key, value, residual, weight, mask, counts, scalar, out, state,
    queries, keys, heads, groups,
    query_batch, query_token, query_head, query_channel,
    key_batch, key_token, key_head, key_channel,
    value_batch, value_token, value_head, value_channel,
    residual_batch, residual_token, residual_head, residual_channel,
    mask_batch, mask_token,
    all_keys, kv_scale, gamma, alpha, identity, eps, row_eps, prefix, grid_height, grid_width,
    SAVE_STATE: tl.constexpr,
    FEATURES: tl.constexpr, NORMALIZE: tl.constexpr, IDENTITY: tl.constexpr,
    HAS_CONSTANT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SCALAR: tl.constexpr,
    LOCAL: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Keys and values into a state, then queries to outputs; grid (batch · groups,)."""
    program = tl.program_id(0)
    batch = (program // groups).to(tl.int64)
    head = (program % groups).to(tl.int64) * GROUP
    key_columns = column_offsets(key_head, key_channel, GROUP, KEY_WIDTH)
    value_columns = column_offsets(value_head, value_channel, GROUP, VALUE_WIDTH)
    value_base = value + batch * value_batch + head * value_head
    mask_base = mask
    if HAS_MASK:
        mask_base = mask + batch * mask_batch
    matrix, key_sum, value_sum = sum_keys(
        key + batch * key_batch + head * key_head, value_base, mask_base, 0, keys,
        key_token, value_token, mask_token, key_columns, value_columns, eps,
        FEATURES, NORMALIZE == "rowsum", HAS_CONSTANT, HAS_MASK, EXACT, PRECISION, ROWS,
        GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip
    if GROUP > 1:
        # Products of one head's keys with another's values are not used.
        row = tl.arange(0, GROUP * KEY_WIDTH) // KEY_WIDTH
        column = tl.arange(0, GROUP * VALUE_WIDTH) // VALUE_WIDTH
        matrix = tl.where(row[:, None] == column[None, :], matrix, 0.0)
    if SAVE_STATE:
        numbers: tl.constexpr = KEY_DIM * VALUE_DIM + KEY_DIM + VALUE_DIM
        store_state(
            state + (batch * heads + head) * numbers, matrix, key_sum, value_sum,
            GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
        )  # fmt: skip
    count, scale, constant = sample_scales(
        counts, batch, scalar, all_keys, kv_scale, alpha, HAS_MASK, HAS_SCALAR
    )
    residual_base = residual
    residual_columns = value_columns
    if IDENTITY == "residual":
        residual_base = residual + batch * residual_batch + head * residual_head
        residual_columns = column_offsets(residual_head, residual_channel, GROUP, VALUE_WIDTH)
    filters = value_columns
    if LOCAL != "none":
        filters = filter_offsets(head, TAPS, LOCAL, GROUP, VALUE_DIM, VALUE_WIDTH)
    write_outputs(
        query + batch * query_batch + head * query_head, value_base, residual_base, weight,
        mask_base, out + (batch * queries * heads + head) * VALUE_DIM,
        matrix, key_sum, value_sum, 0, queries, queries,
        query_token, value_token, residual_token, mask_token, heads * VALUE_DIM,
        column_offsets(query_head, query_channel, GROUP, KEY_WIDTH), value_columns,
        residual_columns, column_offsets(VALUE_DIM, 1, GROUP, VALUE_WIDTH), filters,
        scale * gamma, scale * constant, identity, scale * constant * count, eps, row_eps,
        prefix, grid_height, grid_width,
        FEATURES, NORMALIZE, IDENTITY, HAS_CONSTANT, HAS_MASK, LOCAL, SIZE, TAPS,
        EXACT, PRECISION, ROWS, GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip


@triton.jit
def linear_attention_fwd_kernel_state(
    key, value, mask, state,
    batches, keys, heads, groups, splits, split_keys,
    key_batch, key_token, key_head, key_channel,
    value_batch, value_token, value_head, value_channel,
    mask_batch, mask_token, eps,
    FEATURES: tl.constexpr, NEED_KEY_SUM: tl.constexpr, NEED_VALUE_SUM: tl.constexpr,
    HAS_MASK: tl.constexpr, EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr,
    GROUP: tl.constexpr, KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """The state of one split of the keys: state (splits, batch, heads, numbers) float32.

    Grid (batch · splits · groups,): the programs of one stretch of tokens are neighbours.
    """
    program = tl.program_id(0)
    head = (program % groups).to(tl.int64) * GROUP
    part = program // groups % splits
    batch = (program // groups // splits).to(tl.int64)
    begin = part * split_keys
    mask_base = mask
    if HAS_MASK:
        mask_base = mask + batch * mask_batch
    matrix, key_sum, value_sum = sum_keys(
        key + batch * key_batch + head * key_head,
        value + batch * value_batch + head * value_head,
        mask_base, begin, tl.minimum(begin + split_keys, keys),
        key_token, value_token, mask_token,
        column_offsets(key_head, key_channel, GROUP, KEY_WIDTH),
        column_offsets(value_head, value_channel, GROUP, VALUE_WIDTH), eps,
        FEATURES, NEED_KEY_SUM, NEED_VALUE_SUM, HAS_MASK, EXACT, PRECISION, ROWS,
        GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip
    numbers: tl.constexpr = KEY_DIM * VALUE_DIM + KEY_DIM + VALUE_DIM
    store_state(
        state + ((part.to(tl.int64) * batches + batch) * heads + head) * numbers,
        matrix, key_sum, value_sum, GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip


@triton.jit
def linear_attention_fwd_kernel_output(
    query, value, residual, weight, mask, counts, scalar, out, state,
    queries, heads, groups, blocks, block_queries,
    query_batch, query_token, query_head, query_channel,
    value_batch, value_token, value_head, value_channel,
    residual_batch, residual_token, residual_head, residual_channel,
    mask_batch, mask_token,
    all_keys, kv_scale, gamma, alpha, identity, eps, row_eps, prefix, grid_height, grid_width,
    FEATURES: tl.constexpr, NORMALIZE: tl.constexpr, IDENTITY: tl.constexpr,
    HAS_CONSTANT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SCALAR: tl.constexpr,
    LOCAL: tl.constexpr, SIZE: tl.constexpr, TAPS: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """Outputs of one block of queries from the complete state; grid (batch · blocks · groups,)."""
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    head = (program % groups).to(tl.int64) * GROUP
    begin = (program // groups % blocks) * block_queries
    batch = (program // groups // blocks).to(tl.int64)
    numbers: tl.constexpr = KEY_DIM * VALUE_DIM + KEY_DIM + VALUE_DIM
    matrix, key_sum, value_sum = load_state(
        state + (batch * heads + head) * numbers, NORMALIZE == "rowsum", HAS_CONSTANT,
        GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip
    count, scale, constant = sample_scales(
        counts, batch, scalar, all_keys, kv_scale, alpha, HAS_MASK, HAS_SCALAR
    )
    mask_base = mask
    if HAS_MASK:
        mask_base = mask + batch * mask_batch
    value_base = value
    value_columns = column_offsets(VALUE_DIM, 1, GROUP, VALUE_WIDTH)
    out_columns = value_columns
    if IDENTITY == "value" or LOCAL != "none":
        value_base = value + batch * value_batch + head * value_head
        value_columns = column_offsets(value_head, value_channel, GROUP, VALUE_WIDTH)
    residual_base = residual
    residual_columns = out_columns
    if IDENTITY == "residual":
        residual_base = residual + batch * residual_batch + head * residual_head
        residual_columns = column_offsets(residual_head, residual_channel, GROUP, VALUE_WIDTH)
    filters = out_columns
    if LOCAL != "none":
        filters = filter_offsets(head, TAPS, LOCAL, GROUP, VALUE_DIM, VALUE_WIDTH)
    write_outputs(
        query + batch * query_batch + head * query_head, value_base, residual_base, weight,
        mask_base, out + (batch * queries * heads + head) * VALUE_DIM,
        matrix, key_sum, value_sum, begin, tl.minimum(begin + block_queries, queries), queries,
        query_token, value_token, residual_token, mask_token, heads * VALUE_DIM,
        column_offsets(query_head, query_channel, GROUP, KEY_WIDTH), value_columns,
        residual_columns, out_columns, filters,
        scale * gamma, scale * constant, identity, scale * constant * count, eps, row_eps,
        prefix, grid_height, grid_width,
        FEATURES, NORMALIZE, IDENTITY, HAS_CONSTANT, HAS_MASK, LOCAL, SIZE, TAPS,
        EXACT, PRECISION, ROWS, GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip
