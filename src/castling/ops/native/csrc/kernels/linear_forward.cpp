// Linear attention, forward: the state S = Σφ(k)vᵀ, z = Σφ(k), m = Σv in the first pass over the
// tokens, rows of the output in the second.
#include "linear_problem.h"

namespace CASTLING_NAMESPACE {
namespace {

// Rows of the output that are finished at once: between product and result they stay in the L1 cache
// beside the state.
constexpr long GROUP = 4 * TILE_ROWS;
// Up to this many channels a whole block stays there.
constexpr long NARROW = 32;

// Up to this many keys, attention may be computed as (φ(q)φ(k)ᵀ)v, without a state.
constexpr long MAX_KEYS = 2 * BLOCK;
// Up to this many keys after the last whole vector are multiplied one by one.
constexpr long FEW = LANES / 8;

struct Forward : LinearProblem {
  bool by_keys;
  long columns;  // keys in the matrix of similarities, the others are multiplied one by one
  long ldn;      // floats of a row of similarities

  explicit Forward(const LinearArguments& arguments)
      : LinearProblem(arguments, arguments.keys, arguments.queries, 1, false) {
    columns = a.keys % LANES <= FEW ? a.keys / LANES * LANES : a.keys;
    ldn = padded(a.keys);
    by_keys = cheaper_by_keys();
    sum_first = by_keys ? key_wide * ldn + a.keys * ldv + FEW * ldk : dim * ldv;
    sum_floats = sum_first + ldk + 2 * ldv;  // S or keys, values and last keys, z, m, and s·a·m
    head_floats = CONSTANTS + (converts_values() ? a.keys * ldv : 0);
    worker_floats = max(BLOCK * (ldk + ldv), QueryBlock::floats(*this) + (by_keys ? BLOCK * ldn : 0));
  }

  // For few tokens (φ(q)φ(k)ᵀ)v takes fewer products than φ(q)(φ(k)ᵀv); the gradient needs the state
  // of the latter.
  bool cheaper_by_keys() const {
    double wide = vectors(columns) * LANES + 0.4 * LANES * (a.keys - columns);
    double by_keys = a.queries * (wide * dim + (double)a.keys * value_wide);
    // The factor 0.9 accounts for transposing the keys and for partly filled vectors.
    return a.state == nullptr && a.keys <= MAX_KEYS &&
           by_keys < 0.9 * (a.queries + a.keys) * dim * value_wide;
  }

  float* converted(float* own) const { return own + CONSTANTS; }
  float* values_by_key(float* sum) const { return sum + key_wide * ldn; }
  float* last_keys(float* sum) const { return values_by_key(sum) + a.keys * ldv; }
  float* total(float* sum) const { return sum + sum_first; }
  float* values(float* sum) const { return total(sum) + ldk; }

  void prepare(float*, long b, long h, float* own) {
    long keys = count_keys(b);
    own[0] = scale(keys);
    own[1] = (float)keys;
    if (converts_values())
      masked_rows(a.value, b, h, 0, a.keys, value_dim, converted(own), ldv);
  }

  void first_pass(float* work, long b, long h, long start, long count, bool fresh, float* own,
                  float* sum) {
    float* k = work;
    float* v = by_keys ? values_by_key(sum) + start * ldv : k + BLOCK * ldk;
    float scales[BLOCK];
    masked_rows(a.key, b, h, start, count, dim, k, ldk, nullptr, scales);
    map_rows(a.features, {k, ldk}, count, key_wide, eps, k, ldk, scales, true);
    if (a.key_mask != nullptr)
      for (long t = 0; t < count; ++t)
        if (!takes_part(b, start + t)) scales[t] = 0;
    bool scaled = a.features == castling::UNIT || a.features == castling::SQUARES;
    bool sums_values = mean || a.state != nullptr;
    Rows rows{v, ldv};
    if (converts_values())
      rows = {converted(own) + start * ldv, ldv};
    else
      masked_rows(a.value, b, h, start, count, value_dim, v, ldv,
                  scaled && !sums_values ? scales : nullptr);
    if (sums_values) add_rows(rows, nullptr, count, value_wide, values(sum));
    if (rowsum || a.state != nullptr) add_rows({k, ldk}, scales, count, key_wide, total(sum));
    if (scaled && (sums_values || converts_values())) {
      for (long t = 0; t < count; ++t)
        for (long c = 0; c < value_wide; c += LANES)
          store(v + t * ldv + c, broadcast(scales[t]) * load(rows.data + t * rows.ld + c));
      rows = {v, ldv};
    }
    if (by_keys) return keep_keys(k, rows, start, count, sum);
    Ahead ahead = after_keys(b, h, start, count);
    ahead.over(tiles(dim, value_dim));
    auto between = [&ahead] { ahead.step(); };
    if (fresh)
      matmul<false, true>(dim, value_dim, count, k, ldk, rows.data, rows.ld, sum, ldv, between);
    else
      matmul<true, true>(dim, value_dim, count, k, ldk, rows.data, rows.ld, sum, ldv, between);
  }

  void keep_keys(float* k, Rows values, long start, long count, float* sum) const {
    float* to = values_by_key(sum) + start * ldv;
    for (long t = 0; values.data != to && t < count; ++t)
      __builtin_memcpy(to + t * ldv, values.data + t * values.ld, value_wide * sizeof(float));
    for (long t = max(0, columns - start); t < count; ++t)
      __builtin_memcpy(last_keys(sum) + (start + t - columns) * ldk, k + t * ldk,
                       key_wide * sizeof(float));
    count = max(0, min(count, columns - start));
    // Columns after the last key are computed but not used.
    long wide = min(BLOCK, ceil_divide(count, LANES) * LANES);
    zero(k + count * ldk, (wide - count) * ldk);
    transpose(k, ldk, wide, dim, sum + start, ldn);
  }

  // Prefetch for the next block.
  Ahead after_keys(long b, long h, long start, long count) const {
    Ahead ahead;
    if (!far) return ahead;
    if (step_on(a.keys, h, start, count))
      ask_for_keys(ahead, b, h, start, count);
    else
      ask_for_queries(ahead, b, h, 0, min(BLOCK, a.queries));
    return ahead;
  }
  Ahead after_queries(long b, long h, long start, long count) const {
    Ahead ahead;
    if (!far) return ahead;
    if (step_on(a.queries, h, start, count)) {
      ask_for_queries(ahead, b, h, start, count);
      ahead.add(a.out, a.dtype, b, h, start, count, value_dim);
    } else if (h + 1 < heads) {
      ask_for_keys(ahead, b, h + 1, 0, min(BLOCK, a.keys));
    }
    return ahead;
  }

  void finish(float*, long b, long h, float* own, float* sum) {
    float* m = values(sum);
    for (long c = 0; c < value_wide; c += LANES)
      store(m + ldv + c, broadcast(own[0] * constant) * load(m + c));
    if (a.state == nullptr) return;
    float* to = a.state + (b * heads + h) * (dim * value_dim + dim + value_dim);
    for (long r = 0; r < dim; ++r)
      __builtin_memcpy(to + r * value_dim, sum + r * ldv, value_dim * sizeof(float));
    __builtin_memcpy(to + dim * value_dim, total(sum), dim * sizeof(float));
    __builtin_memcpy(to + dim * value_dim + dim, m, value_dim * sizeof(float));
  }

  void second_pass(float* work, long b, long h, long start, long count, float* own, float* sum) {
    QueryBlock block(*this, work);
    Ahead ahead = after_queries(b, h, start, count);
    long groups = ceil_divide(count, value_dim <= NARROW ? BLOCK : GROUP), size = ceil_divide(count, groups);
    ahead.over(groups * tiles(size, value_dim));
    for (long t = 0; t < count; t += size)
      write_rows(block, work + QueryBlock::floats(*this), b, h, start + t, min(size, count - t),
                 own, sum, ahead);
  }

  void write_rows(QueryBlock& block, float* similar, long b, long h, long start, long count,
                  float* own, float* sum, Ahead& ahead) {
    const float* average = mean ? values(sum) + ldv : nullptr;
    if (by_keys) {
      block.map_queries(*this, b, h, start, count);
      matmul<false, false>(count, columns, dim, block.rows.data, block.rows.ld, sum, ldn, similar,
                           ldn);
      for (long key = columns; key < a.keys; ++key)
        for (long t = 0; t < count; ++t)
          similar[t * ldn + key] = dot(block.rows.data + t * block.rows.ld,
                                       last_keys(sum) + (key - columns) * ldk, key_wide);
      matmul<false, false>(count, value_dim, a.keys, similar, ldn, values_by_key(sum), ldv,
                           block.x, ldv);
      block.finish(*this, b, h, start, count, own[0], (long)own[1], total(sum), average,
                   nullptr);
    } else {
      block.compute(*this, b, h, start, count, own[0], (long)own[1], sum, total(sum), average,
                    nullptr, ahead);
    }
    Target to = target_of(a.out, a.dtype, b, h, start, value_dim, block.x, ldv);
    if (local.kind) {
      Rows all = all_values(b, h, converted(own));
      convolve(local, weights_of(h), all.data, all.ld, start, count, block.x, ldv,
               block.factors, to.data, to.ld);
    } else {
      for (long t = 0; t < count; ++t)
        for (long c = 0; c < value_wide; c += LANES)
          store(to.data + t * to.ld + c, broadcast(block.factors[t]) * load(block.x + t * ldv + c));
    }
    deliver(to, count, value_dim, a.out, a.dtype, b, h, start);
  }

  // to += Σ_t scale_t·row_t
  static void add_rows(Rows rows, const float* scales, long count, long wide, float* to) {
    for (long c = 0; c < wide; c += LANES) {
      Vec sums[2] = {};
      for (long t = 0; t < count; ++t) {
        Vec row = load(rows.data + t * rows.ld + c);
        sums[t % 2] += scales != nullptr ? broadcast(scales[t]) * row : row;
      }
      store(to + c, load(to + c) + (sums[0] + sums[1]));
    }
  }
};

}  // namespace

int linear_attention_forward(const LinearArguments& arguments) {
  Forward problem(arguments);
  if (problem.weights.data == nullptr) return 1;
  return Schedule<Forward>(problem).run();
}

}  // namespace CASTLING_NAMESPACE
