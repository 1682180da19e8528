"""The depthwise convolution of the values, added to attention tile by tile, and its gradients.

Taps are read in place, from the L1 cache, instead of from a padded or permuted copy. LOCAL is
"token1d", SIZE taps along the flattened tokens with one filter per head, or "grid2d", SIZE × SIZE
taps on the (height, width) grid of the tokens from ``prefix`` on with one filter per channel.
Gradients gather too, so there are no atomics.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.tiles import load_rows

# Up to this many taps the loop over them is unrolled, so that their loads overlap.
UNROLLED_TAPS = tl.constexpr(25)


@triton.jit
def filter_offsets(
    first_head,
    TAPS: tl.constexpr,
    LOCAL: tl.constexpr,
    GROUP: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Offset of the filter of every column in the contiguous weight: (GROUP·WIDTH,)."""
    column = tl.arange(0, GROUP * WIDTH)
    row = first_head + column // WIDTH
    if LOCAL == "grid2d":
        # Padded channels read the last filter and multiply it with zeros.
        row = row * CHANNELS + tl.minimum(column % WIDTH, CHANNELS - 1)
    return row * TAPS


@triton.jit
def shifted_tokens(
    tokens,
    valid,
    tap,
    count,
    prefix,
    grid_height,
    grid_width,
    LOCAL: tl.constexpr,
    SIZE: tl.constexpr,
    SIGN: tl.constexpr,
):
    """The token that ``tap`` reads for each output (SIGN 1), or that reads it (SIGN -1), if any."""
    if LOCAL == "token1d":
        source = tokens + SIGN * (tap - SIZE // 2)
        inside = valid & (source >= 0) & (source < count)
    else:
        down = SIGN * (tap // SIZE - SIZE // 2)
        right = SIGN * (tap % SIZE - SIZE // 2)
        cell = tokens - prefix
        row = cell // grid_width + down
        column = cell % grid_width + right
        inside = valid & (cell >= 0) & (row >= 0) & (row < grid_height)
        inside = inside & (column >= 0) & (column < grid_width)
        source = tokens + down * grid_width + right
    return source, inside


@triton.jit
def kept_tokens(mask_base, tokens, valid, stride, HAS_MASK: tl.constexpr):
    """``valid`` and kept by the key mask."""
    if HAS_MASK:
        kept = tl.load(mask_base + tokens.to(tl.int64) * stride, mask=valid, other=0)
        valid = valid & (kept != 0)
    return valid


@triton.jit
def add_tap(
    accumulator,
    base,
    mask_base,
    weight,
    tokens,
    valid,
    tap,
    stride,
    mask_stride,
    columns,
    filters,
    count,
    prefix,
    grid_height,
    grid_width,
    HAS_MASK: tl.constexpr,
    LOCAL: tl.constexpr,
    SIZE: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Accumulator + weight[tap] · the rows that the tap reads."""
    source, inside = shifted_tokens(
        tokens, valid, tap, count, prefix, grid_height, grid_width, LOCAL, SIZE, 1
    )
    inside = kept_tokens(mask_base, source, inside, mask_stride, HAS_MASK)
    rows = load_rows(base, source, inside, stride, columns, CHANNELS, WIDTH)
    return accumulator + rows * tl.load(weight + filters + tap).to(tl.float32)[None, :]


@triton.jit
def add_taps(
    accumulator,
    base,
    mask_base,
    weight,
    tokens,
    valid,
    stride,
    mask_stride,
    columns,
    filters,
    count,
    prefix,
    grid_height,
    grid_width,
    HAS_MASK: tl.constexpr,
    LOCAL: tl.constexpr,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Accumulator + the convolution of the rows at ``base``."""
    if TAPS <= UNROLLED_TAPS:
        for tap in tl.static_range(TAPS):
            accumulator = add_tap(
                accumulator, base, mask_base, weight, tokens, valid, tap, stride, mask_stride,
                columns, filters, count, prefix, grid_height, grid_width,
                HAS_MASK, LOCAL, SIZE, CHANNELS, WIDTH,
            )  # fmt: skip
    else:
        for tap in range(TAPS):
            accumulator = add_tap(
                accumulator, base, mask_base, weight, tokens, valid, tap, stride, mask_stride,
                columns, filters, count, prefix, grid_height, grid_width,
                HAS_MASK, LOCAL, SIZE, CHANNELS, WIDTH,
            )  # fmt: skip
    return accumulator


@triton.jit
def add_taps_and_filter_gradient(
    d_values,
    filter_gradient,
    values,
    grad_base,
    weight,
    tokens,
    valid,
    stride,
    columns,
    filters,
    count,
    prefix,
    grid_height,
    grid_width,
    LOCAL: tl.constexpr,
    SIZE: tl.constexpr,
    TAPS: tl.constexpr,
    PADDED_TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gather the output gradients of all that read these values, for them and for the filters.

    ``filter_gradient`` is (PADDED_TAPS, GROUP·WIDTH).
    """
    every_tap = tl.arange(0, PADDED_TAPS)
    for tap in range(TAPS):
        reader, inside = shifted_tokens(
            tokens, valid, tap, count, prefix, grid_height, grid_width, LOCAL, SIZE, -1
        )
        rows = load_rows(grad_base, reader, inside, stride, columns, CHANNELS, WIDTH)
        d_values += rows * tl.load(weight + filters + tap).to(tl.float32)[None, :]
        total = tl.sum(rows * values, axis=0)
        here = every_tap == tap
        filter_gradient += tl.where(here[:, None], total[None, :], 0.0)
    return d_values, filter_gradient
