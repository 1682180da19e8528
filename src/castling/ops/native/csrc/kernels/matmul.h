// C (+)= A·B on scratch memory, in register tiles of TILE_ROWS × TILE_VECTORS.
//
// A is read one float at a time, with any strides: a matrix and its transpose cost the same.
// Rows of B and C hold whole vectors (see `padded`), whatever the number of columns.
#pragma once

#include "simd.h"

namespace CASTLING_NAMESPACE {

// One tile: c[r][·] (+)= Σ_p a[r·a_row + p·a_depth] · b[p·ldb + ·].
template <int ROWS, int VECTORS, bool ACCUMULATE, bool TRANSPOSED>
static void tile(long depth, const float* __restrict a, long a_stride, const float* __restrict b,
                 long ldb, float* __restrict c, long ldc) {
  Vec sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) sums[r][v] = Vec{};
#pragma GCC unroll 2
  for (long p = 0; p < depth; ++p) {
    Vec right[VECTORS];
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) right[v] = load(b + v * LANES);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      Vec left = broadcast(TRANSPOSED ? a[r] : a[r * a_stride]);
#pragma GCC unroll 8
      for (int v = 0; v < VECTORS; ++v) sums[r][v] += left * right[v];
    }
    a += TRANSPOSED ? a_stride : 1;
    b += ldb;
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 8
    for (int v = 0; v < VECTORS; ++v) {
      float* at = c + r * ldc + v * LANES;
      store(at, ACCUMULATE ? load(at) + sums[r][v] : sums[r][v]);
    }
}

typedef void (*Tile)(long, const float*, long, const float*, long, float*, long);

template <bool ACCUMULATE, bool TRANSPOSED>
static CASTLING_INLINE Tile tile_of(long rows, long columns) {
#define CASTLING_TILES(R) \
  {tile<R, 1, ACCUMULATE, TRANSPOSED>, tile<R, 2, ACCUMULATE, TRANSPOSED>, \
   tile<R, TILE_VECTORS == 4 ? 3 : 2, ACCUMULATE, TRANSPOSED>, \
   tile<R, TILE_VECTORS, ACCUMULATE, TRANSPOSED>}
  static constexpr Tile TILES[TILE_ROWS][4] = {CASTLING_TILES(1), CASTLING_TILES(2),
                                               CASTLING_TILES(3), CASTLING_TILES(4),
                                               CASTLING_TILES(5), CASTLING_TILES(6)};
#undef CASTLING_TILES
  return TILES[rows - 1][columns - 1];
}

// How many tiles a product of this size has.
static CASTLING_INLINE long tiles(long rows, long columns) {
  return ceil_divide(rows, TILE_ROWS) * ceil_divide(vectors(columns), TILE_VECTORS);
}

// C[rows × columns] = (or +=) Σ_p A(r, p)·B[p, ·]; A(r, p) = a[r·lda + p], or a[p·lda + r] when
// TRANSPOSED. Rows are divided evenly over tiles: 6 + 1 would be slower than 4 + 3.
// `between` is called after every tile.
template <bool ACCUMULATE, bool TRANSPOSED, class Between>
static CASTLING_INLINE void matmul(long rows, long columns, long depth, const float* a, long lda,
                                   const float* b, long ldb, float* c, long ldc,
                                   const Between& between) {
  long width = vectors(columns), row_tiles = ceil_divide(rows, TILE_ROWS);
  long column_tiles = ceil_divide(width, TILE_VECTORS);
  for (long j = 0, v = 0; j < column_tiles; ++j) {
    long wide = (width - v) / (column_tiles - j) + ((width - v) % (column_tiles - j) != 0);
    for (long i = 0, r = 0; i < row_tiles; ++i) {
      long high = (rows - r) / (row_tiles - i) + ((rows - r) % (row_tiles - i) != 0);
      tile_of<ACCUMULATE, TRANSPOSED>(high, wide)(depth, a + (TRANSPOSED ? r : r * lda), lda,
                                                  b + v * LANES, ldb, c + r * ldc + v * LANES,
                                                  ldc);
      between();
      r += high;
    }
    v += wide;
  }
}

template <bool ACCUMULATE, bool TRANSPOSED>
static void matmul(long rows, long columns, long depth, const float* a, long lda, const float* b,
                   long ldb, float* c, long ldc) {
  matmul<ACCUMULATE, TRANSPOSED>(rows, columns, depth, a, lda, b, ldb, c, ldc, [] {});
}

}  // namespace CASTLING_NAMESPACE
