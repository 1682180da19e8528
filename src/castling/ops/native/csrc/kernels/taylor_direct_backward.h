// Backward pass of the direct order: p is recomputed; five products per tile.
//
// With g_i = ∂L/∂out_i over the row sum: ∂L/∂p_ij = ⟨g_i, v_j⟩ − ⟨g_i, out_i⟩, ∂L/∂z = ∂L/∂p·(1 + z),
// dq̂ = ∂L/∂z·K̂, dk̂ = (∂L/∂z)ᵀ·Q̂, dv = Pᵀ·g. Both v and out are less the shift.
#pragma once

#include "taylor_direct.h"

namespace CASTLING_NAMESPACE {

struct DirectBackward {
  long ld, value_ld;
  KeyTile tile;
  float *value_columns, *key_gradients, *value_gradients, *scores, *slopes;
  float *queries, *factors, *query_gradients, *gradients, *outs, *centre;
  long size;

  DirectBackward(const TaylorArguments& a, long capacity, Carver memory)
      : ld(padded(a.dim)),
        value_ld(padded(a.value_dim)),
        tile(a, memory),
        value_columns(memory.take(whole(a.value_dim) * SCORE_LD)),
        key_gradients(memory.take(KEY_TILE * ld)),
        value_gradients(memory.take(KEY_TILE * value_ld)),
        scores(memory.take(QUERY_TILE * SCORE_LD)),
        slopes(memory.take(QUERY_TILE * SCORE_LD)),
        queries(memory.take(capacity * ld)),
        factors(memory.take(capacity)),
        query_gradients(memory.take(capacity * ld)),
        gradients(memory.take(capacity * value_ld)),
        outs(memory.take(capacity * value_ld)),
        centre(memory.take(capacity)),
        size(memory.used) {}

  // Reads queries [first, last). Rounded outputs are recomputed by `forward`: their error, the same in
  // all slopes of a row, would add up.
  void begin(const TaylorArguments& a, const ValueShifts& shifts, TokenList list, long b, long h,
             long first, long last, DirectForward& forward) {
    long rows = last - first;
    if (a.dtype == castling::FLOAT32) {
      shifts.read_outputs(b, h, first, rows, outs);
    } else {
      forward.run(a, shifts, list, b, h, first, last);
      __builtin_memcpy(outs, forward.sums, rows * value_ld * sizeof(float));
    }
    read_rows(a, a.query, ALL, b, h, first, rows, a.dim, queries, ld);
    scale_rows(a, queries, ld, rows, factors);
    read_gradients(a, b, h, first, rows, a.state + (b * a.heads + h) * direct_state(a) + first,
                   gradients, value_ld);
    for (long q = 0; q < rows; ++q)
      centre[q] = dot(gradients + q * value_ld, outs + q * value_ld, a.value_dim);
    fill(query_gradients, rows * ld, 0);
  }

  // Gradients of a tile of keys and values from the queries read; adds the queries' from this tile.
  void keys(const TaylorArguments& a, const ValueShifts& shifts, TokenList list, long b, long h,
            long first, long n, long rows) {
    long round = tile.read(a, shifts, list, b, h, first, n);
    transpose(tile.values, value_ld, round, a.value_dim, value_columns, SCORE_LD);
    fill(key_gradients, n * ld, 0);
    fill(value_gradients, n * value_ld, 0);
    for (long q = 0; q < rows; q += QUERY_TILE) {
      long m = min(QUERY_TILE, rows - q);
      const float *x = queries + q * ld, *g = gradients + q * value_ld;
      matmul<false, false>(m, round, a.dim, x, ld, tile.columns, SCORE_LD, scores, SCORE_LD);
      matmul<false, false>(m, round, a.value_dim, g, value_ld, value_columns, SCORE_LD, slopes,
                           SCORE_LD);
      polynomial_gradient(scores, slopes, m, round, centre + q);
      matmul<true, false>(m, a.dim, n, slopes, SCORE_LD, tile.keys, ld, query_gradients + q * ld,
                          ld);
      matmul<true, true>(n, a.dim, m, slopes, SCORE_LD, x, ld, key_gradients, ld);
      matmul<true, true>(n, a.value_dim, m, scores, SCORE_LD, g, value_ld, value_gradients,
                         value_ld);
    }
  }
};

// dK̂ and dV of some keys to gradients of key and value.
static void finish_keys(const TaylorArguments& a, TokenList list, long b, long h, long first,
                        long count, const float* keys, const float* factors, long ld,
                        float* key_gradients, const float* value_gradients, long value_ld) {
  unscale_gradients(a, keys, ld, count, factors, key_gradients, ld);
  write_rows(a, a.grad_key, list, b, h, first, count, a.dim, key_gradients, ld);
  write_rows(a, a.grad_value, list, b, h, first, count, a.value_dim, value_gradients, value_ld);
}

// With few heads, queries are divided into chunks whose parts of dK̂ and dV are added afterwards.
// Chunks and order depend on shapes alone, never on the number of threads.
static int backward_direct(const TaylorArguments& a, const KeyLists& lists,
                           const ValueShifts& shifts) {
  const long ld = padded(a.dim), value_ld = padded(a.value_dim), both = ld + value_ld;
  const long heads = a.batch * a.heads;
  long wanted = min(ceil_divide(32, heads), ceil_divide(a.queries, 5 * QUERY_TILE));
  const long length = ceil_divide(ceil_divide(a.queries, wanted), QUERY_TILE) * QUERY_TILE;
  const long chunks = ceil_divide(a.queries, length);
  castling::Scratch parts(chunks == 1 ? 16 : heads * chunks * a.keys * both);
  if (parts.data == nullptr) return 1;
  const long again = a.dtype == castling::FLOAT32 ? 0 : length;
  const long floats = DirectBackward(a, length, Carver{nullptr}).size;
  const long more = again == 0 ? 0 : DirectForward(a, again, Carver{nullptr}).size;
  int failed = each_piece(a, a.queries, length, floats + more, [&](long b, long h, long first,
                                                                  long last, float* memory) {
    DirectBackward chunk(a, length, Carver{memory});
    DirectForward forward(a, again, Carver{memory + floats});
    TokenList list = lists[b];
    chunk.begin(a, shifts, list, b, h, first, last, forward);
    for (long k = 0; k < list.count; k += KEY_TILE) {
      long n = min(KEY_TILE, list.count - k);
      chunk.keys(a, shifts, list, b, h, k, n, last - first);
      if (chunks == 1) {
        finish_keys(a, list, b, h, k, n, chunk.tile.keys, chunk.tile.factors, ld,
                    chunk.key_gradients, chunk.value_gradients, value_ld);
      } else {
        float* to =
            parts.data + (((b * a.heads + h) * chunks + first / length) * a.keys + k) * both;
        __builtin_memcpy(to, chunk.key_gradients, n * ld * sizeof(float));
        __builtin_memcpy(to + n * ld, chunk.value_gradients, n * value_ld * sizeof(float));
      }
    }
    unscale_gradients(a, chunk.queries, ld, last - first, chunk.factors, chunk.query_gradients, ld);
    write_rows(a, a.grad_query, ALL, b, h, first, last - first, a.dim, chunk.query_gradients, ld);
  });
  if (failed || chunks == 1) return failed;
  return each_piece(a, a.keys, KEY_TILE, KEY_TILE * (ld + 1) + 64, [&](long b, long h, long k,
                                                                      long last, float* memory) {
    TokenList list = lists[b];
    long n = min(last, list.count) - k;
    if (n <= 0) return;
    float *keys = memory, *factors = memory + KEY_TILE * ld;
    float* sums = parts.data + ((b * a.heads + h) * chunks * a.keys + k) * both;
    for (long chunk = 1; chunk < chunks; ++chunk) {
      const float* part = sums + chunk * a.keys * both;
      for (long i = 0; i < n * both; i += LANES) store(sums + i, load(sums + i) + load(part + i));
    }
    read_rows(a, a.key, list, b, h, k, n, a.dim, keys, ld);
    scale_rows(a, keys, ld, n, factors);
    finish_keys(a, list, b, h, k, n, keys, factors, ld, sums, sums + n * ld, value_ld);
  });
}

}  // namespace CASTLING_NAMESPACE
