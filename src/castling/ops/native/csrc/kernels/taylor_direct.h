// Exact Taylor attention through tiles of the similarity p = 1 + z + z²/2: no exponential, no
// running maximum; forward and backward hold one tile of 48 queries by 64 keys.
#pragma once

#include "matmul.h"
#include "taylor_values.h"

namespace CASTLING_NAMESPACE {

constexpr long QUERY_TILE = 48, KEY_TILE = 64;
constexpr long SCORE_LD = KEY_TILE + 16;

// Floats of a head's state: row sums, shift.
static long direct_state(const TaylorArguments& a) { return a.queries + a.value_dim; }

// z -> p in place; adds the rows' sums. `one` is 1, and 0 after the last key.
static void polynomial(float* scores, long rows, long keys, const float* one, float* totals) {
  const Vec half = broadcast(0.5f), unit = broadcast(1.0f);
  for (long r = 0; r < rows; ++r) {
    float* row = scores + r * SCORE_LD;
    Vec total = {};
    for (long j = 0; j < keys; j += LANES) {
      Vec z = load(row + j);
      z = z * (z * half + unit) + load(one + j);
      store(row + j, z);
      total += z;
    }
    totals[r] += sum(total);
  }
}

// z -> p and ∂L/∂p + centre -> ∂L/∂z, in place.
static void polynomial_gradient(float* scores, float* slopes, long rows, long keys,
                                const float* centre) {
  const Vec half = broadcast(0.5f), unit = broadcast(1.0f);
  for (long r = 0; r < rows; ++r) {
    float *row = scores + r * SCORE_LD, *slope = slopes + r * SCORE_LD;
    const Vec shift = broadcast(centre[r]);
    for (long j = 0; j < keys; j += LANES) {
      Vec z = load(row + j);
      store(slope + j, (load(slope + j) - shift) * (z + unit));
      store(row + j, z * (z * half + unit) + unit);
    }
  }
}

struct KeyTile {
  long ld, value_ld;
  float *keys, *factors, *columns, *values, *one;

  KeyTile(const TaylorArguments& a, Carver& memory)
      : ld(padded(a.dim)),
        value_ld(padded(a.value_dim)),
        keys(memory.take(KEY_TILE * ld)),
        factors(memory.take(KEY_TILE)),
        columns(memory.take(whole(a.dim) * SCORE_LD)),
        values(memory.take(KEY_TILE * value_ld)),
        one(memory.take(KEY_TILE)) {}

  // Returns the number of keys rounded up to whole vectors; the added rows are zero.
  long read(const TaylorArguments& a, const ValueShifts& shifts, TokenList list, long b, long h,
            long first, long count) {
    long round = whole(count);
    read_rows(a, a.key, list, b, h, first, count, a.dim, keys, ld);
    scale_rows(a, keys, ld, count, factors);
    fill(keys + count * ld, (round - count) * ld, 0);
    transpose(keys, ld, round, a.dim, columns, SCORE_LD);
    shifts.read(b, h, first, count, values);
    fill(values + count * value_ld, (round - count) * value_ld, 0);
    fill(one, count, 1);
    fill(one + count, round - count, 0);
    return round;
  }
};

// Outputs of up to `capacity` queries, less the shift: rows of `sums`, and the row sums in `below`.
struct DirectForward {
  long ld, value_ld;
  KeyTile tile;
  float *queries, *factors, *sums, *below, *scores;

  DirectForward(const TaylorArguments& a, long capacity, Carver memory)
      : ld(padded(a.dim)),
        value_ld(padded(a.value_dim)),
        tile(a, memory),
        queries(memory.take(capacity * ld)),
        factors(memory.take(capacity)),
        sums(memory.take(capacity * value_ld)),
        below(memory.take(capacity)),
        scores(memory.take(QUERY_TILE * SCORE_LD)),
        size(memory.used) {}

  void run(const TaylorArguments& a, const ValueShifts& shifts, TokenList list, long b, long h,
           long first, long last) {
    long rows = last - first;
    read_rows(a, a.query, ALL, b, h, first, rows, a.dim, queries, ld);
    scale_rows(a, queries, ld, rows, factors);
    fill(sums, rows * value_ld, 0);
    fill(below, rows, 0);
    for (long k = 0; k < list.count; k += KEY_TILE) {
      long n = min(KEY_TILE, list.count - k), round = tile.read(a, shifts, list, b, h, k, n);
      for (long q = 0; q < rows; q += QUERY_TILE) {
        long m = min(QUERY_TILE, rows - q);
        matmul<false, false>(m, round, a.dim, queries + q * ld, ld, tile.columns, SCORE_LD, scores,
                             SCORE_LD);
        polynomial(scores, m, round, tile.one, below + q);
        matmul<true, false>(m, a.value_dim, n, scores, SCORE_LD, tile.values, value_ld,
                            sums + q * value_ld, value_ld);
      }
    }
    float offset = row_offset(a, list);
    for (long q = 0; q < rows; ++q) below[q] += offset;
    shifts.divide(b, h, rows, below, sums);
  }

  long size;
};

static int forward_direct(const TaylorArguments& a, const KeyLists& lists,
                          const ValueShifts& shifts) {
  // The rows of more queries would not stay in the L2 cache.
  long length = piece(a, a.queries, 2 * QUERY_TILE, 10 * QUERY_TILE);
  long floats = DirectForward(a, length, Carver{nullptr}).size;
  return each_piece(a, a.queries, length, floats, [&](long b, long h, long first, long last,
                                                      float* memory) {
    DirectForward chunk(a, length, Carver{memory});
    chunk.run(a, shifts, lists[b], b, h, first, last);
    shifts.write_outputs(b, h, first, last - first, chunk.sums);
    if (a.state != nullptr)
      __builtin_memcpy(a.state + (b * a.heads + h) * direct_state(a) + first, chunk.below,
                       (last - first) * sizeof(float));
  });
}

}  // namespace CASTLING_NAMESPACE
