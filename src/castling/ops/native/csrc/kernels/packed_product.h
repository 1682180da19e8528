// Rows times a matrix packed beforehand, with bias, activation and residual in the same pass.
//
// - The matrix lies in panels of TILE_VECTORS vectors of columns: TILE_ROWS × TILE_VECTORS sums stay
//   in registers while both operands stream.
// - Columns are padded to whole vectors with zeros; only stores to the output have a remainder.
#pragma once

#include "activations.h"

namespace CASTLING_NAMESPACE {

constexpr long PANEL = TILE_VECTORS * LANES;

CASTLING_INLINE long whole_vectors(long count) { return vectors(count) * LANES; }

// The first `count` of a vector's elements, which may be none, or all.
CASTLING_INLINE Vec load_some(const float* p, long count) {
  return count >= LANES ? load(p) : count > 0 ? load_part(p, count) : Vec{};
}
CASTLING_INLINE void store_some(float* p, Vec x, long count) {
  if (count >= LANES)
    store(p, x);
  else if (count > 0)
    store_part(p, x, count);
}

// out[i][j] = act(start + Σ_k a[i][k]·b[k][j]) + residual[i][j]; the start is bias[j], or out[i][j]
// where there is no bias: the product continues an earlier sum.
struct Product {
  const float* a;
  long a_stride;
  const float* b;          // what pack_matrix made
  long depth;              // number of k
  long panel_depth;        // number of k in the panels
  long first;              // the first k in the panels
  const float* bias;       // whole vectors
  const float* residual;   // or null
  long residual_stride;
  float* out;
  long out_stride;
  long columns;            // of out and residual
  bool gelu;
};

template <int ROWS, int WIDTH>
static void product_tile(const Product& job, long row, long column, const float* b) {
  Vec sums[ROWS][WIDTH];
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < WIDTH; ++j) {
      long at = column + j * LANES;
      sums[i][j] = job.bias ? load(job.bias + at)
                            : load_some(job.out + (row + i) * job.out_stride + at, job.columns - at);
    }
  const float* a = job.a + row * job.a_stride;
  const long stride = job.a_stride;
  for (long k = 0; k < job.depth; ++k) {
    Vec right[WIDTH];
    for (int j = 0; j < WIDTH; ++j) right[j] = load(b + (k * WIDTH + j) * LANES);
    for (int i = 0; i < ROWS; ++i) {
      Vec left = broadcast(a[i * stride + k]);
      for (int j = 0; j < WIDTH; ++j) sums[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < ROWS; ++i)
    for (int j = 0; j < WIDTH; ++j) {
      long at = column + j * LANES;
      Vec value = job.gelu ? gelu(sums[i][j]) : sums[i][j];
      if (job.residual)
        value += load_some(job.residual + (row + i) * job.residual_stride + at, job.columns - at);
      store_some(job.out + (row + i) * job.out_stride + at, value, job.columns - at);
    }
}

template <int WIDTH>
static void product_rows(const Product& job, long rows, long row, long column, const float* b) {
  static_assert(TILE_ROWS == 6, "one case for each number of rows");
  switch (rows) {
    case 1: return product_tile<1, WIDTH>(job, row, column, b);
    case 2: return product_tile<2, WIDTH>(job, row, column, b);
    case 3: return product_tile<3, WIDTH>(job, row, column, b);
    case 4: return product_tile<4, WIDTH>(job, row, column, b);
    case 5: return product_tile<5, WIDTH>(job, row, column, b);
    case 6: return product_tile<6, WIDTH>(job, row, column, b);
  }
}

// All rows are multiplied with one panel before the next, so that the panel stays in the L1 cache.
// Rows are divided evenly: a tile of one row would leave most multipliers idle.
static void product(const Product& job, long rows) {
  const long groups = ceil_divide(rows, TILE_ROWS), all = vectors(job.columns);
  for (long done = 0; done < all; done += TILE_VECTORS) {
    const long width = min(all - done, TILE_VECTORS);
    const float* b = job.b + (done * job.panel_depth + job.first * width) * LANES;
    for (long group = 0; group < groups; ++group) {
      const long row = group * rows / groups, count = (group + 1) * rows / groups - row;
      switch (width) {
        case 1: product_rows<1>(job, count, row, done * LANES, b); break;
        case 2: product_rows<2>(job, count, row, done * LANES, b); break;
#if defined(__AVX512F__) || defined(__aarch64__)
        case 3: product_rows<3>(job, count, row, done * LANES, b); break;
        case 4: product_rows<4>(job, count, row, done * LANES, b); break;
#endif
      }
    }
  }
}

// Floats of a packed matrix.
CASTLING_INLINE long matrix_size(long outputs, long inputs) {
  return whole_vectors(outputs) * inputs;
}

// parts × (outputs, inputs), one after the other -> panels [inputs][PANEL or the vectors left],
// each part's outputs rounded up to whole vectors.
static void pack_matrix(const float* weight, long parts, long outputs, long inputs, float* packed) {
  const long each = whole_vectors(outputs), all = parts * each;
  for (long first = 0; first < all; first += PANEL)
    for (long k = 0; k < inputs; ++k)
      for (long j = first; j < min(first + PANEL, all); ++j) {
        const long part = j / each, output = j % each;
        *packed++ = output < outputs ? weight[(part * outputs + output) * inputs + k] : 0.0f;
      }
}

static void pack_row(const float* values, long count, float* packed) {
  for (long i = 0; i < whole_vectors(count); ++i) packed[i] = i < count ? values[i] : 0.0f;
}

}  // namespace CASTLING_NAMESPACE
