// Exact Taylor attention in O(N): passes over blocks of tokens between them and the table.
//
// Forward: keys to table, table to outputs. Backward: table to queries' gradients, queries to the
// table's gradient, that to keys' and values' gradients. With many heads each is one task; with few,
// each pass is divided by features or by tokens, with the same sums.
#pragma once

#include "taylor_features.h"

namespace CASTLING_NAMESPACE {

struct Pass {
  const ValueShifts& shifts;
  Block block;
  long value_ld;
  float *values, *columns, *results, *totals, *weights, *gradient, *gradient_rows;
  long size;

  Pass(const TaylorArguments& a, const ValueShifts& value_shifts, Carver memory)
      : shifts(value_shifts),
        block(a, memory),
        value_ld(padded(a.value_dim)),
        values(memory.take(TOKENS * value_ld)),
        columns(memory.take(whole(a.value_dim) * TOKEN_LD)),
        results(memory.take(TOKENS * value_ld)),
        totals(memory.take(TOKENS)),
        weights(memory.take(TOKENS)),
        gradient(memory.take((whole(a.dim) + 1) * TOKEN_LD)),
        gradient_rows(memory.take((TOKENS + 4) * block.ld)),
        size(memory.used) {}

  // `values` transposed, zeros after the last token.
  void transpose_values(const TaylorArguments& a, long count) const {
    fill(values + count * value_ld, (TOKENS - count) * value_ld, 0);
    transpose(values, value_ld, TOKENS, a.value_dim, columns, TOKEN_LD);
  }

  void read_weights(const float* centre, long count) const {
    for (long n = 0; n < TOKENS; ++n) weights[n] = n < count ? -centre[n] : 0;
  }

  void keys_to_table(const TaylorArguments& a, TokenList list, long b, long h, long first,
                     long last, const Table& table) const {
    table.clear(first, last);
    for (long k = 0; k < list.count; k += TOKENS) {
      long n = min(TOKENS, list.count - k);
      block.read(a, a.key, list, b, h, k, n);
      shifts.read(b, h, k, n, values);
      block.accumulate(a, values, value_ld, block.columns, n, first, last, table);
    }
    table.halve_squares(a.dim, first, last);
  }

  void table_to_outputs(const TaylorArguments& a, TokenList list, long b, long h, long first,
                        long last, const Table& table, float* below) const {
    float offset = row_offset(a, list);
    for (long q = first; q < last; q += TOKENS) {
      long m = min(TOKENS, last - q);
      block.read(a, a.query, ALL, b, h, q, m);
      block.apply(a, table, m, results, value_ld, totals);
      for (long i = 0; i < m; ++i) totals[i] += offset;
      shifts.divide(b, h, m, totals, results);
      shifts.write_outputs(b, h, q, m, results);
      if (below != nullptr) __builtin_memcpy(below + q, totals, m * sizeof(float));
    }
  }

  // Also centre = ⟨∂L/∂out, out − shift⟩ over the row sum, for the table's gradient.
  void table_to_query_gradients(const TaylorArguments& a, long b, long h, long first, long last,
                                const Table& table, const float* below, float* centre) const {
    for (long q = first; q < last; q += TOKENS) {
      long m = min(TOKENS, last - q);
      block.read(a, a.query, ALL, b, h, q, m);
      if (a.dtype == castling::FLOAT32) {
        shifts.read_outputs(b, h, q, m, results);
      } else {  // the error of a rounded output would be the same in all slopes of its row
        block.apply(a, table, m, results, value_ld, totals);
        shifts.divide(b, h, m, below + q, results);
      }
      read_gradients(a, b, h, q, m, below + q, values, value_ld);
      for (long i = 0; i < m; ++i)
        centre[q + i] = dot(values + i * value_ld, results + i * value_ld, a.value_dim);
      transpose_values(a, m);
      read_weights(centre + q, m);
      block.differentiate(a, table, columns, weights, m, gradient, gradient_rows);
      write_rows(a, a.grad_query, ALL, b, h, q, m, a.dim, gradient_rows, block.ld);
    }
  }

  void queries_to_table(const TaylorArguments& a, long b, long h, long first, long last,
                        const float* below, const float* centre, const Table& table) const {
    table.clear(first, last);
    for (long q = 0; q < a.queries; q += TOKENS) {
      long m = min(TOKENS, a.queries - q);
      block.read(a, a.query, ALL, b, h, q, m);
      read_gradients(a, b, h, q, m, below + q, values, value_ld);
      read_weights(centre + q, m);
      block.accumulate(a, values, value_ld, weights, m, first, last, table);
    }
    table.halve_squares(a.dim, first, last);
  }

  void table_to_key_gradients(const TaylorArguments& a, TokenList list, long b, long h, long first,
                              long last, const Table& table) const {
    for (long k = first; k < last; k += TOKENS) {
      long n = min(TOKENS, last - k);
      block.read(a, a.key, list, b, h, k, n);
      block.apply(a, table, n, results, value_ld, totals);
      write_rows(a, a.grad_value, list, b, h, k, n, a.value_dim, results, value_ld);
      shifts.read(b, h, k, n, values);
      transpose_values(a, n);
      block.differentiate(a, table, columns, block.columns, n, gradient, gradient_rows);
      write_rows(a, a.grad_key, list, b, h, k, n, a.dim, gradient_rows, block.ld);
    }
  }
};

// Floats of a head's state: table, row sums, shift.
static long table_state(const TaylorArguments& a) {
  return Table::size(a) + a.queries + a.value_dim;
}

// Tables of all heads, `stride` floats apart in the state, each followed by row sums.
struct Tables {
  const TaylorArguments& a;
  float* memory;
  long stride;
  Table operator()(long b, long h) const { return {a, memory + (b * a.heads + h) * stride}; }
  float* after(long b, long h) const {
    return memory + (b * a.heads + h) * stride + Table::size(a);
  }
};

CASTLING_INLINE bool head_by_head(const TaylorArguments& a) {
  return a.batch * a.heads >= 2 * a.threads;
}

constexpr long MIN_FEATURES = 24;  // of a task: whole register tiles

static int forward_features(const TaylorArguments& a, const KeyLists& lists,
                            const ValueShifts& shifts) {
  const long features = feature_count(a.dim), heads = a.batch * a.heads;
  const long floats = Pass(a, shifts, Carver{nullptr}).size, size = Table::size(a);
  const bool saved = a.state != nullptr;
  if (head_by_head(a)) {
    const Tables tables{a, a.state, table_state(a)};
    return each_task(a.threads, heads, floats + (saved ? 0 : size), [&](long head, float* memory) {
      long b = head / a.heads, h = head % a.heads;
      Pass pass(a, shifts, Carver{memory});
      Table table = saved ? tables(b, h) : Table(a, memory + floats);
      pass.keys_to_table(a, lists[b], b, h, 0, features, table);
      pass.table_to_outputs(a, lists[b], b, h, 0, a.queries, table,
                            saved ? tables.after(b, h) : nullptr);
    });
  }
  castling::Scratch own(saved ? 16 : heads * size);
  if (own.data == nullptr) return 1;
  const Tables tables{a, saved ? a.state : own.data, saved ? table_state(a) : size};
  int failed = each_piece(a, features, piece(a, features, MIN_FEATURES, features), floats,
                          [&](long b, long h, long first, long last, float* memory) {
    Pass(a, shifts, Carver{memory}).keys_to_table(a, lists[b], b, h, first, last, tables(b, h));
  });
  if (failed) return failed;
  return each_piece(a, a.queries, piece(a, a.queries, TOKENS, a.queries), floats,
                    [&](long b, long h, long first, long last, float* memory) {
    Pass(a, shifts, Carver{memory}).table_to_outputs(a, lists[b], b, h, first, last, tables(b, h),
                                             saved ? tables.after(b, h) : nullptr);
  });
}

static int backward_features(const TaylorArguments& a, const KeyLists& lists,
                             const ValueShifts& shifts) {
  const long features = feature_count(a.dim), heads = a.batch * a.heads;
  const long floats = Pass(a, shifts, Carver{nullptr}).size, size = Table::size(a);
  const Tables tables{a, a.state, table_state(a)};
  if (head_by_head(a)) {
    return each_task(a.threads, heads, floats + size + a.queries, [&](long head, float* memory) {
      long b = head / a.heads, h = head % a.heads;
      Pass pass(a, shifts, Carver{memory});
      Table slopes(a, memory + floats);
      float *centre = memory + floats + size, *below = tables.after(b, h);
      pass.table_to_query_gradients(a, b, h, 0, a.queries, tables(b, h), below, centre);
      pass.queries_to_table(a, b, h, 0, features, below, centre, slopes);
      pass.table_to_key_gradients(a, lists[b], b, h, 0, lists[b].count, slopes);
    });
  }
  castling::Scratch own(heads * (size + a.queries));
  if (own.data == nullptr) return 1;
  const Tables slopes{a, own.data, size + a.queries};
  int failed = each_piece(a, a.queries, piece(a, a.queries, TOKENS, a.queries), floats,
                          [&](long b, long h, long first, long last, float* memory) {
    Pass(a, shifts, Carver{memory}).table_to_query_gradients(a, b, h, first, last, tables(b, h),
                                                     tables.after(b, h), slopes.after(b, h));
  });
  if (failed) return failed;
  failed = each_piece(a, features, piece(a, features, MIN_FEATURES, features), floats,
                      [&](long b, long h, long first, long last, float* memory) {
    Pass(a, shifts, Carver{memory}).queries_to_table(a, b, h, first, last, tables.after(b, h),
                                             slopes.after(b, h), slopes(b, h));
  });
  if (failed) return failed;
  return each_piece(a, a.keys, piece(a, a.keys, TOKENS, a.keys), floats,
                    [&](long b, long h, long first, long last, float* memory) {
    Pass(a, shifts, Carver{memory}).table_to_key_gradients(a, lists[b], b, h, first,
                                                   min(last, lists[b].count), slopes(b, h));
  });
}

}  // namespace CASTLING_NAMESPACE
