"""First backward kernel of linear attention: the pass over the queries.

- It writes the gradients of the queries and of the identity term's tensor, and sums over its part
  of the queries: the gradients of the state and of the scalar.
- Outputs are recomputed from the saved state: only inputs and the state are saved.
- For row sums, state, values and outputs are those of centred values (:func:`_centred`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.features import feature_gradient, feature_parts
from castling.ops.triton.linear_attention_forward_tiles import (
    attend,
    load_state,
    row_total,
    sample_scales,
    state_offsets,
    store_state,
)
from castling.ops.triton.tiles import (
    column_offsets,
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
def _centred(
    matrix, key_sum, value_sum, count, gamma, constant, HAS_CONSTANT: tl.constexpr,
    GROUP: tl.constexpr, KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """S and m of values less one row per head, and that row: the output for the query z.

    Subtract a common row from v and y: ⟨g, v − y⟩ is unchanged. Without it, values far from zero
    cancel to rounding errors in the gradients.
    """
    _, real, _, _, _, _ = state_offsets(GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH)
    weight = gamma / tl.maximum(count, 1.0)
    shift = weight * tl.sum(matrix * key_sum[:, None], axis=0)
    total = weight * tl.sum(tl.where(real, (key_sum * key_sum)[:, None], 0.0), axis=0)
    if HAS_CONSTANT:
        shift += constant * value_sum
        total += constant * count
    shift = shift / tl.where(total == 0.0, 1.0, total)
    # Shift a channel only if the shift is near the mean of every feature's values: much smaller
    # values would lose their digits. An infinite value stays in its channel.
    shares = key_sum[:, None] * shift[None, :]
    apart = real & (tl.abs(matrix - shares) > 0.5 * tl.abs(shares))
    common = (tl.sum(apart.to(tl.int32), axis=0) == 0) & (shift - shift == 0.0)
    if HAS_CONSTANT:
        common = common & (tl.abs(value_sum - count * shift) <= 0.5 * tl.abs(count * shift))
    shift = tl.where(common, shift, 0.0)
    matrix -= tl.where(real & common[None, :], shares, 0.0)
    return matrix, value_sum - count * shift, shift


@triton.jit
def linear_attention_bwd_kernel_queries(
    grad_out, query, value, residual, mask, counts, scalar, state,
    d_query, d_identity, state_parts, scalar_parts, value_shifts,
    batches, queries, heads, groups, parts, part_queries,
    grad_out_batch, grad_out_token, grad_out_head, grad_out_channel,
    query_batch, query_token, query_head, query_channel,
    value_batch, value_token, value_head, value_channel,
    residual_batch, residual_token, residual_head, residual_channel,
    mask_batch, mask_token,
    all_keys, kv_scale, gamma, alpha, identity, eps, row_eps,
    FEATURES: tl.constexpr, NORMALIZE: tl.constexpr, IDENTITY: tl.constexpr,
    HAS_CONSTANT: tl.constexpr, HAS_MASK: tl.constexpr, HAS_SCALAR: tl.constexpr,
    EXACT: tl.constexpr, PRECISION: tl.constexpr, ROWS: tl.constexpr, GROUP: tl.constexpr,
    KEY_DIM: tl.constexpr, KEY_WIDTH: tl.constexpr,
    VALUE_DIM: tl.constexpr, VALUE_WIDTH: tl.constexpr,
):  # fmt: skip
    """One part of one sample's queries; grid (batch · parts · groups,).

    ``state_parts`` (parts, batch, heads, numbers) and ``scalar_parts`` (parts, batch, groups) are
    float32 sums. For row sums, ``value_shifts`` (batch, heads, VALUE_DIM) is the values' shift.
    """
    program = tl.program_id(0)
    group = program % groups
    head = group.to(tl.int64) * GROUP
    part = program // groups % parts
    batch = (program // groups // parts).to(tl.int64)
    begin = part * part_queries
    end = tl.minimum(begin + part_queries, queries)
    numbers: tl.constexpr = KEY_DIM * VALUE_DIM + KEY_DIM + VALUE_DIM
    raw: tl.constexpr = EXACT and FEATURES != "squares"
    matrix, key_sum, value_sum = load_state(
        state + (batch * heads + head) * numbers, NORMALIZE == "rowsum", HAS_CONSTANT,
        GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip
    count, sample_scale, constant = sample_scales(
        counts, batch, scalar, all_keys, kv_scale, alpha, HAS_MASK, HAS_SCALAR
    )
    attention_scale = sample_scale * gamma
    constant_scale = sample_scale * constant
    key_columns = column_offsets(KEY_DIM, 1, GROUP, KEY_WIDTH)
    value_columns = column_offsets(VALUE_DIM, 1, GROUP, VALUE_WIDTH)
    shift = tl.zeros((GROUP * VALUE_WIDTH,), tl.float32)
    if NORMALIZE == "rowsum":
        matrix, value_sum, shift = _centred(
            matrix, key_sum, value_sum, count, gamma, constant, HAS_CONSTANT,
            GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
        )  # fmt: skip
        real = tl.arange(0, GROUP * VALUE_WIDTH) % VALUE_WIDTH < VALUE_DIM
        if part == 0:
            shift_base = value_shifts + (batch * heads + head) * VALUE_DIM
            tl.store(shift_base + value_columns, shift, mask=real)
    query_columns = column_offsets(query_head, query_channel, GROUP, KEY_WIDTH)
    grad_columns = column_offsets(grad_out_head, grad_out_channel, GROUP, VALUE_WIDTH)
    grad_base = grad_out + batch * grad_out_batch + head * grad_out_head
    first = batch * queries * heads + head
    mask_base = mask
    if HAS_MASK:
        mask_base = mask + batch * mask_batch
    source_base = value
    source_token = value_token
    source_columns = value_columns
    if IDENTITY == "residual":
        source_base = residual + batch * residual_batch + head * residual_head
        source_token = residual_token
        source_columns = column_offsets(residual_head, residual_channel, GROUP, VALUE_WIDTH)
    if IDENTITY == "value":
        source_base = value + batch * value_batch + head * value_head
        source_columns = column_offsets(value_head, value_channel, GROUP, VALUE_WIDTH)
    d_matrix = tl.zeros((GROUP * KEY_WIDTH, GROUP * VALUE_WIDTH), tl.float32)
    d_key_sum = tl.zeros((GROUP * KEY_WIDTH,), tl.float32)
    d_value_sum = tl.zeros((GROUP * VALUE_WIDTH,), tl.float32)
    d_totals = tl.zeros((ROWS, GROUP), tl.float32)
    matrix_high, matrix_low = split(matrix, PRECISION)
    for start in range(begin, end, ROWS):
        tokens = start + tl.arange(0, ROWS)
        valid = tokens < end
        row = load_rows(
            query + batch * query_batch + head * query_head,
            tokens, valid, query_token, query_columns, KEY_DIM, KEY_WIDTH,
        )  # fmt: skip
        base, scale = feature_parts(row, valid, eps, FEATURES, ROWS, GROUP, KEY_WIDTH)
        base_high, base_low = split(base, PRECISION)
        gradient = load_rows(
            grad_base, tokens, valid, grad_out_token, grad_columns, VALUE_DIM, VALUE_WIDTH
        )
        d_result = gradient
        d_total = tl.zeros((ROWS, GROUP), tl.float32)
        if NORMALIZE != "none":
            result = attend(
                base_high, base_low, matrix_high, matrix_low, scale, value_sum,
                source_base, mask_base, tokens, valid, source_token, mask_token, source_columns,
                attention_scale, constant_scale, identity,
                IDENTITY, HAS_CONSTANT, HAS_MASK, raw, PRECISION, ROWS, GROUP,
                VALUE_DIM, VALUE_WIDTH,
            )  # fmt: skip
            if NORMALIZE == "rowsum":
                # row_eps adds weight without a value: its share of the shift is taken off.
                result -= (row_eps * shift)[None, :]
            along = row_sums(result * gradient, ROWS, GROUP, VALUE_WIDTH)
            if NORMALIZE == "l2":
                inverse = safe_rsqrt(row_sums(result * result, ROWS, GROUP, VALUE_WIDTH), eps)
                along = along * inverse * inverse
                d_result = gradient - result * spread(along, ROWS, GROUP, VALUE_WIDTH)
            else:
                total = row_total(
                    base, scale, key_sum, attention_scale, constant_scale * count + row_eps,
                    ROWS, GROUP, KEY_WIDTH,
                )  # fmt: skip
                inverse = safe_inverse(total)
                # A row of sum 0 is not divided: its slopes are those of values without a shift.
                along_shift = row_sums(gradient * shift[None, :], ROWS, GROUP, VALUE_WIDTH)
                d_total = tl.where(total == 0.0, along_shift, -along * inverse * inverse)
            d_result = d_result * spread(inverse, ROWS, GROUP, VALUE_WIDTH)
            # Rows past the end may have a norm that is not finite; their gradient is zero.
            d_result = tl.where(valid[:, None], d_result, 0.0)
            d_total = tl.where(valid[:, None], d_total, 0.0)
        if IDENTITY != "none":
            store_rows(
                d_identity + first * VALUE_DIM, identity * d_result, tokens, valid,
                heads * VALUE_DIM, value_columns, VALUE_DIM, VALUE_WIDTH,
            )  # fmt: skip
        if HAS_CONSTANT:
            d_value_sum += tl.sum(d_result, axis=0)
        # One scaled copy for both products: scale·∂φ = (scale·∂x)Sᵀ and ∂S = baseᵀ(scale·∂x).
        scaled = d_result * spread(scale, ROWS, GROUP, VALUE_WIDTH)
        high, low = split(scaled, PRECISION)
        d_row = tl.zeros((ROWS, GROUP * KEY_WIDTH), tl.float32)
        d_row = multiply(
            high, low, tl.trans(matrix_high), tl.trans(matrix_low), d_row, False, False, PRECISION
        )
        d_matrix = multiply(
            tl.trans(base_high), tl.trans(base_low), high, low, d_matrix, raw, False, PRECISION
        )
        if NORMALIZE == "rowsum":
            scaled_total = spread(d_total * scale, ROWS, GROUP, KEY_WIDTH)
            d_row += scaled_total * key_sum[None, :]
            d_key_sum += tl.sum(base * scaled_total, axis=0)
            d_totals += d_total
        d_row = feature_gradient(
            row, base, scale, d_row * attention_scale, eps, FEATURES, ROWS, GROUP, KEY_WIDTH
        )
        store_rows(
            d_query + first * KEY_DIM, d_row, tokens, valid,
            heads * KEY_DIM, key_columns, KEY_DIM, KEY_WIDTH,
        )  # fmt: skip
    store_state(
        state_parts + ((part.to(tl.int64) * batches + batch) * heads + head) * numbers,
        d_matrix, d_key_sum, d_value_sum, GROUP, KEY_DIM, KEY_WIDTH, VALUE_DIM, VALUE_WIDTH,
    )  # fmt: skip
    if HAS_SCALAR:
        d_constant = tl.sum(value_sum * d_value_sum) + count * tl.sum(tl.sum(d_totals, axis=1))
        slot = (part.to(tl.int64) * batches + batch) * groups + group
        tl.store(scalar_parts + slot, sample_scale * d_constant)
