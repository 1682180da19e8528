// Slices of the symmetric features of the exact Taylor attention, and the three products with them.
//
// With x₀ = 1 before the channels, the features are x_i·x_j for 0 ≤ i ≤ j ≤ d, and ½ on the squares
// i = j > 0 makes their inner product 1 + z + z²/2. The halves are in the table Σ_j φ(k_j)·v_jᵀ.
// Vectors run along the tokens: a block of 128 tokens has a row for each channel.
#pragma once

#include "matmul.h"
#include "taylor_values.h"

namespace CASTLING_NAMESPACE {

constexpr long TOKENS = 128, SLICE = 96;
constexpr long TOKEN_LD = TOKENS + 16;
constexpr int STRIPE = 4;  // vectors of tokens whose sums stay in registers
constexpr long STEP = STRIPE * LANES;

CASTLING_INLINE long feature_count(long dim) { return (dim + 1) * (dim + 2) / 2; }
CASTLING_INLINE long first_feature(long dim, long i) { return i * (dim + 1) - i * (i - 1) / 2; }
// Floats of a table's row: a multiple of every instruction set's vectors.
CASTLING_INLINE long table_ld(long value_dim) { return ceil_divide(value_dim, 16) * 16; }

// run(i, j, end, f): features i·j … i·(end − 1), the first of them number first + f.
template <class Run>
static CASTLING_INLINE void each_row(long dim, long first, long last, const Run& run) {
  long i = 0;
  while (first_feature(dim, i + 1) <= first) ++i;
  for (long f = first; f < last; ++i) {
    long j = i + f - first_feature(dim, i), end = min(dim + 1, j + last - f);
    run(i, j, end, f - first);
    f += end - j;
  }
}

// Σ_j φ(k_j)·v_jᵀ of shifted values, F rows, followed by Σ_j φ(k_j).
struct Table {
  float *rows, *sums;
  long ld;

  Table(const TaylorArguments& a, float* memory)
      : rows(memory),
        sums(memory + feature_count(a.dim) * table_ld(a.value_dim)),
        ld(table_ld(a.value_dim)) {}

  static long size(const TaylorArguments& a) {
    return feature_count(a.dim) * (table_ld(a.value_dim) + 1);
  }
  void clear(long first, long last) const {
    fill(rows + first * ld, (last - first) * ld, 0);
    fill(sums + first, last - first, 0);
  }
  void halve_squares(long dim, long first, long last) const {
    for (long i = 1; i <= dim; ++i) {
      long f = first_feature(dim, i);
      if (f < first || f >= last) continue;
      scale(rows + f * ld, 0.5f, ld);
      sums[f] *= 0.5f;
    }
  }
};

// Features [first, last) of a block; sums[f] += Σ_tokens φ·u.
static void features_and_sums(long dim, const float* x, long tokens, long first, long last,
                              float* slice, const float* u, float* sums) {
  for (long t = 0; t < tokens; t += STEP)
    each_row(dim, first, last, [&](long i, long j, long end, long f) {
      Vec left[STRIPE], weight[STRIPE];
      for (int s = 0; s < STRIPE; ++s) {
        left[s] = load(x + i * TOKEN_LD + t + s * LANES);
        weight[s] = load(u + t + s * LANES);
      }
      for (; j < end; ++j, ++f) {
        Vec total = {};
        for (int s = 0; s < STRIPE; ++s) {
          Vec product = left[s] * load(x + j * TOKEN_LD + t + s * LANES);
          store(slice + f * TOKEN_LD + t + s * LANES, product);
          total += product * weight[s];
        }
        sums[first + f] += sum(total);
      }
    });
}

// Features [first, last) of a block; totals[token] += Σ_f φ·weights[f].
static void features_and_totals(long dim, const float* x, long tokens, long first, long last,
                                float* slice, const float* weights, float* totals) {
  for (long t = 0; t < tokens; t += STEP) {
    Vec total[STRIPE];
    for (int s = 0; s < STRIPE; ++s) total[s] = load(totals + t + s * LANES);
    each_row(dim, first, last, [&](long i, long j, long end, long f) {
      Vec left[STRIPE];
      for (int s = 0; s < STRIPE; ++s) left[s] = load(x + i * TOKEN_LD + t + s * LANES);
      for (; j < end; ++j, ++f) {
        Vec weight = broadcast(weights[first + f]);
        for (int s = 0; s < STRIPE; ++s) {
          Vec product = left[s] * load(x + j * TOKEN_LD + t + s * LANES);
          store(slice + f * TOKEN_LD + t + s * LANES, product);
          total[s] += product * weight;
        }
      }
    });
    for (int s = 0; s < STRIPE; ++s) store(totals + t + s * LANES, total[s]);
  }
}

// x's gradient from that of its features [first, last), slice + weights·u.
static void gradient_of_features(long dim, const float* x, long tokens, long first, long last,
                                 const float* slice, const float* weights, const float* u,
                                 float* gradient) {
  for (long t = 0; t < tokens; t += STEP)
    each_row(dim, first, last, [&](long i, long j, long end, long f) {
      Vec left[STRIPE], sums[STRIPE], unit[STRIPE];
      for (int s = 0; s < STRIPE; ++s) {
        left[s] = load(x + i * TOKEN_LD + t + s * LANES);
        unit[s] = load(u + t + s * LANES);
        sums[s] = Vec{};
      }
      for (; j < end; ++j, ++f) {
        Vec weight = broadcast(weights[first + f]);
        for (int s = 0; s < STRIPE; ++s) {
          long at = j * TOKEN_LD + t + s * LANES;
          Vec slope = load(slice + f * TOKEN_LD + t + s * LANES) + weight * unit[s];
          sums[s] += slope * load(x + at);
          store(gradient + at, load(gradient + at) + slope * left[s]);
        }
      }
      for (int s = 0; s < STRIPE; ++s) {
        float* at = gradient + i * TOKEN_LD + t + s * LANES;
        store(at, load(at) + sums[s]);
      }
    });
}

// A block of tokens: scaled rows, and their transpose after a row of ones; zeros after the last token.
struct Block {
  long ld;
  float *rows, *factors, *columns, *slice;

  Block(const TaylorArguments& a, Carver& memory)
      : ld(padded(a.dim)),
        rows(memory.take(TOKENS * ld)),
        factors(memory.take(TOKENS)),
        columns(memory.take((whole(a.dim) + 1) * TOKEN_LD)),
        slice(memory.take(SLICE * TOKEN_LD)) {}

  void read(const TaylorArguments& a, const Tensor4& tensor, TokenList list, long b, long h,
            long first, long count) const {
    read_rows(a, tensor, list, b, h, first, count, a.dim, rows, ld);
    scale_rows(a, rows, ld, count, factors);
    fill(rows + count * ld, (TOKENS - count) * ld, 0);
    fill(columns, count, 1);
    fill(columns + count, TOKENS - count, 0);
    transpose(rows, ld, TOKENS, a.dim, columns + TOKEN_LD, TOKEN_LD);
  }

  // table += Σ_n φ(x_n)·y_nᵀ, its sums += Σ_n φ(x_n)·u_n, for features [first, last).
  void accumulate(const TaylorArguments& a, const float* y, long ldy, const float* u, long count,
                  long first, long last, const Table& table) const {
    long tokens = ceil_divide(count, STEP) * STEP;
    for (long f = first; f < last; f += SLICE) {
      long end = min(last, f + SLICE);
      features_and_sums(a.dim, columns, tokens, f, end, slice, u, table.sums);
      matmul<true, false>(end - f, a.value_dim, count, slice, TOKEN_LD, y, ldy,
                          table.rows + f * table.ld, table.ld);
    }
  }

  // y_n = φ(x_n)ᵀ·table, totals_n = φ(x_n)·sums.
  void apply(const TaylorArguments& a, const Table& table, long count, float* y, long ldy,
             float* totals) const {
    long tokens = ceil_divide(count, STEP) * STEP, features = feature_count(a.dim);
    fill(y, count * ldy, 0);
    fill(totals, TOKENS, 0);
    for (long f = 0; f < features; f += SLICE) {
      long end = min(features, f + SLICE);
      features_and_totals(a.dim, columns, tokens, f, end, slice, table.sums, totals);
      matmul<true, true>(count, a.value_dim, end - f, slice, TOKEN_LD, table.rows + f * table.ld,
                         table.ld, y, ldy);
    }
  }

  // rows' gradient of Σ_n φ(x_n)ᵀ(table·y_n + sums·u_n), through `gradient`, shaped like columns.
  void differentiate(const TaylorArguments& a, const Table& table, const float* y_columns,
                     const float* u, long count, float* gradient, float* out) const {
    long tokens = ceil_divide(count, STEP) * STEP, features = feature_count(a.dim);
    fill(gradient, (whole(a.dim) + 1) * TOKEN_LD, 0);
    for (long f = 0; f < features; f += SLICE) {
      long end = min(features, f + SLICE);
      matmul<false, false>(end - f, tokens, a.value_dim, table.rows + f * table.ld, table.ld,
                           y_columns, TOKEN_LD, slice, TOKEN_LD);
      gradient_of_features(a.dim, columns, tokens, f, end, slice, table.sums, u, gradient);
    }
    transpose(gradient + TOKEN_LD, TOKEN_LD, whole(a.dim), count, out, ld);
    unscale_gradients(a, rows, ld, count, factors, out, ld);
  }
};

}  // namespace CASTLING_NAMESPACE
