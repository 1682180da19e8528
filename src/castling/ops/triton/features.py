"""Feature maps φ of linear attention on tiles of tokens, and their gradients.

A map is returned as (base, scale), φ = base · scale with one scale per row and head: a raw query
enters a product unrounded, and its norm multiplies the float32 result.
"""

from __future__ import annotations

import triton
import triton.language as tl

from castling.ops.triton.tiles import row_sums, safe_rsqrt, spread


@triton.jit
def feature_parts(
    tile,
    valid,
    eps,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Base (ROWS, GROUP·WIDTH) and scale (ROWS, GROUP) of each row's φ; zero for invalid rows.

    "unit" x·rsqrt(Σx² + eps), with zero rows left zero unless eps is 0; "relu" max(x, 0);
    "squares" w/√(Σw² + eps) of w = x²/(Σx² + eps); "identity" x.
    """
    scale = tl.where(valid, 1.0, 0.0)[:, None] + tl.zeros((ROWS, GROUP), tl.float32)
    if FEATURES == "unit":
        base = tile
        squares = row_sums(tile * tile, ROWS, GROUP, WIDTH)
        scale = tl.where(valid[:, None], safe_rsqrt(squares, eps), 0.0)
    elif FEATURES == "relu":
        base = tl.maximum(tile, 0.0)
    elif FEATURES == "squares":
        squares = tile * tile
        squares = squares / spread(row_sums(squares, ROWS, GROUP, WIDTH) + eps, ROWS, GROUP, WIDTH)
        norm = row_sums(squares * squares, ROWS, GROUP, WIDTH) + eps
        base = squares * spread(tl.math.rsqrt(norm), ROWS, GROUP, WIDTH)
        base = tl.where(valid[:, None], base, 0.0)
    else:
        base = tile
    return base, scale


@triton.jit
def feature_gradient(
    tile,
    base,
    scale,
    gradient,
    eps,
    FEATURES: tl.constexpr,
    ROWS: tl.constexpr,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
):
    """Gradient of the row, given its :func:`feature_parts` and scale · the gradient of its φ."""
    if FEATURES == "unit":
        # (I − φφᵀ)/norm, eps included: the norm is √(Σx² + eps) in φ as well.
        unit = base * spread(scale, ROWS, GROUP, WIDTH)
        along = row_sums(unit * gradient, ROWS, GROUP, WIDTH)
        gradient = gradient - unit * spread(along, ROWS, GROUP, WIDTH)
    elif FEATURES == "relu":
        gradient = tl.where(tile > 0.0, gradient, 0.0)
    elif FEATURES == "squares":
        total = spread(row_sums(tile * tile, ROWS, GROUP, WIDTH) + eps, ROWS, GROUP, WIDTH)
        squares = tile * tile / total
        norm = tl.math.rsqrt(row_sums(squares * squares, ROWS, GROUP, WIDTH) + eps)
        along = spread(row_sums(base * gradient, ROWS, GROUP, WIDTH), ROWS, GROUP, WIDTH)
        gradient = (gradient - base * along) * spread(norm, ROWS, GROUP, WIDTH)
        along = spread(row_sums(squares * gradient, ROWS, GROUP, WIDTH), ROWS, GROUP, WIDTH)
        gradient = (gradient - along) * 2.0 * tile / total
    return gradient
