// Shared by the forward and backward pass of linear attention: sizes, constants, the rows x_i.
#pragma once

#include "ahead.h"
#include "convolution.h"
#include "features.h"
#include "matmul.h"
#include "schedule.h"
#include "transpose.h"

namespace CASTLING_NAMESPACE {

using castling::LinearArguments;

// Below this many multiply-adds per thread, waking a thread takes longer than it saves.
constexpr double WORK_PER_THREAD = 4e5;
// Up to this many bytes a head's rows stay in the L2 cache between the two passes.
constexpr double HEAD_BYTES = 1 << 20;
// Up to this many bytes the tensors are still in the last-level cache from an earlier operator, where
// prefetching does not pay.
constexpr double NEAR_BYTES = 8 << 20;

struct LinearProblem {
  static constexpr long CONSTANTS = 16;  // floats at the start of a head's memory, for single numbers

  const LinearArguments& a;
  long batch, heads, threads;
  bool by_head, far;
  Blocks first, second;
  long sum_floats, sum_first, head_floats, worker_floats;

  long dim, value_dim;       // channels
  long key_wide, value_wide; // floats of whole vectors that hold them
  long ldk, ldv;             // floats of a scratch row
  float eps, gamma, constant, identity;
  bool rowsum, mean;
  Local local;
  castling::Scratch weights;

  // Weights are flipped for the gradient of a convolution.
  LinearProblem(const LinearArguments& arguments, long first_tokens, long second_tokens,
                double work, bool flipped)
      : a(arguments),
        batch(a.batch),
        heads(a.heads),
        first(first_tokens),
        second(second_tokens),
        dim(a.dim),
        value_dim(a.value_dim),
        key_wide(vectors(dim) * LANES),
        value_wide(vectors(value_dim) * LANES),
        ldk(padded(dim)),
        ldv(padded(value_dim)),
        eps((float)a.eps),
        gamma((float)a.gamma),
        constant((float)a.constant),
        identity((float)a.identity),
        rowsum(a.normalize == castling::ROWSUM),
        mean(a.constant != 0),
        local{(long)a.local, (long)a.taps, (long)a.height, (long)a.width,
              (long)a.prefix, (long)a.keys, value_wide},
        weights(local.kind ? heads * local.size() : 1) {
    double useful = work * (a.queries + a.keys) * a.batch * a.heads * a.dim * a.value_dim;
    threads = max(1, min(a.threads, (long)(useful / WORK_PER_THREAD)));
    double bytes = 4.0 * (a.queries + a.keys) * (a.dim + a.value_dim);
    by_head = batch * heads >= threads && bytes <= HEAD_BYTES;
    far = batch * heads * bytes > NEAR_BYTES;
    if (local.kind && weights.data != nullptr)
      lay_weights(local, a.local_weight, heads, value_dim, flipped, weights.data);
  }

  const float* weights_of(long h) const { return weights.data + h * local.size(); }

  bool takes_part(long b, long token) const {
    return a.key_mask == nullptr || a.key_mask[b * a.mask_batch + token * a.mask_token];
  }

  long count_keys(long b) const {
    if (a.key_mask == nullptr) return a.keys;
    long count = 0;
    for (long t = 0; t < a.keys; ++t) count += takes_part(b, t);
    return count;
  }

  float scale(long keys) const { return a.kv_scale > 0 ? (float)a.kv_scale : 1.0f / max(1, keys); }

  void zero_masked(float* rows, long ld, long wide, long b, long start, long count) const {
    if (a.key_mask == nullptr) return;
    for (long t = 0; t < count; ++t)
      if (!takes_part(b, start + t)) zero(rows + t * ld, wide);
  }

  // Advances to the schedule's next block: the head's next one, or the same of the next head. False
  // at the end of this pass.
  bool step_on(long tokens, long& h, long& start, long& count) const {
    if (by_head || ++h == heads) start += count;
    if (h == heads) h = 0;
    count = min(count, tokens - start);
    return count > 0;
  }

  // Prefetch what the pass over the keys reads at these tokens, and the pass over the queries.
  void ask_for_keys(Ahead& ahead, long b, long h, long start, long count) const {
    ahead.add(a.key, a.dtype, b, h, start, count, dim);
    ahead.add(a.value, a.dtype, b, h, start, count, value_dim);
  }
  void ask_for_queries(Ahead& ahead, long b, long h, long start, long count) const {
    ahead.add(a.query, a.dtype, b, h, start, count, dim);
    if (!local.kind && identity == 0) return;
    start += local.reach();
    ahead.add(a.value, a.dtype, b, h, start, min(count, a.keys - start), value_dim);
  }

  // Masked keys and values count as zero, also where memory holds NaN.
  void masked_rows(const castling::Tensor4& x, long b, long h, long start, long count,
                   long channels, float* to, long ld, const float* factors = nullptr,
                   float* squares = nullptr) const {
    pack_rows(x, a.dtype, b, h, start, count, channels, to, ld, factors, squares);
    zero_masked(to, ld, vectors(channels) * LANES, b, start, count);
    for (long t = 0; a.key_mask != nullptr && squares != nullptr && t < count; ++t)
      if (!takes_part(b, start + t)) squares[t] = 0;
  }

  // The same, without a copy where the rows can be read in place.
  Rows token_rows(const castling::Tensor4& x, long b, long h, long start, long count,
                  long channels, float* scratch, long ld) const {
    if (a.key_mask == nullptr)
      return rows_of(x, a.dtype, b, h, start, count, channels, scratch, ld);
    masked_rows(x, b, h, start, count, channels, scratch, ld);
    return {scratch, ld};
  }

  // A convolution reads rows many times: they are converted once, unless they can be read in place.
  bool converts_values() const {
    return local.kind && (a.key_mask != nullptr || !in_place(a.value, a.dtype, value_dim));
  }
  Rows all_values(long b, long h, const float* converted) const {
    if (converts_values()) return {converted, ldv};
    return {(const float*)a.value.data + b * a.value.batch + h * a.value.head,
            (long)a.value.token};
  }
};

// Scratch rows of a block of queries, in a thread's memory.
struct QueryBlock {
  float* raw;       // (BLOCK, ldk) queries, where they cannot be read in place
  float* mapped;    // (BLOCK, ldk) rows a of φ
  float* x;         // (BLOCK, ldv)
  float* residual;  // (BLOCK, ldv)
  Rows query, rows;
  float scales[BLOCK];
  float factors[BLOCK];  // y = factor·x
  bool empty[BLOCK];     // row sum 0: y = x

  static long floats(const LinearProblem& p) { return 2 * BLOCK * (p.ldk + p.ldv); }
  QueryBlock(const LinearProblem& p, float* memory)
      : raw(memory),
        mapped(raw + BLOCK * p.ldk),
        x(mapped + BLOCK * p.ldk),
        residual(x + BLOCK * p.ldv) {}

  // x_i = ι·r_i + sγ·φ(q_i)ᵀS + (sa)·m and the factors that normalise; `mean` is s·a·m. If S and m
  // are sums of centred values v − shift, the rows are y_i − shift.
  void compute(const LinearProblem& p, long b, long h, long start, long count, float s, long keys,
               const float* state, const float* total, const float* mean, const float* shift,
               Ahead& ahead) {
    map_queries(p, b, h, start, count);
    matmul<false, false>(count, p.value_dim, p.dim, rows.data, rows.ld, state, p.ldv, x, p.ldv,
                         [&ahead] { ahead.step(); });
    finish(p, b, h, start, count, s, keys, total, mean, shift);
  }

  void map_queries(const LinearProblem& p, long b, long h, long start, long count) {
    const LinearArguments& a = p.a;
    query = rows_of(a.query, a.dtype, b, h, start, count, p.dim, raw, p.ldk);
    map_rows(a.features, query, count, p.key_wide, p.eps, mapped, p.ldk, scales);
    rows = transforms(a.features) ? Rows{mapped, p.ldk} : query;
  }

  // The same when x already holds a(q_i)ᵀS.
  void finish(const LinearProblem& p, long b, long h, long start, long count, float s, long keys,
              const float* total, const float* mean, const float* shift) {
    const LinearArguments& a = p.a;
    Rows added{nullptr, 0};
    if (p.identity != 0)
      added = a.residual.data != nullptr
                  ? rows_of(a.residual, a.dtype, b, h, start, count, p.value_dim, residual, p.ldv)
                  : p.token_rows(a.value, b, h, start, count, p.value_dim, residual, p.ldv);
    float weight = s * p.gamma;
    if (added.data != nullptr)
      mean != nullptr ? combine_rows<true, true>(p, count, weight, added, mean)
                      : combine_rows<true, false>(p, count, weight, added, mean);
    else
      mean != nullptr ? combine_rows<false, true>(p, count, weight, added, mean)
                      : combine_rows<false, false>(p, count, weight, added, mean);
    if (a.normalize == castling::L2) return inverse_norms(factors, count, p.eps);
    for (long t = 0; p.rowsum && t < count; ++t) {
      factors[t] = weight * scales[t] * dot(rows.data + t * rows.ld, total, p.key_wide) +
                   s * p.constant * keys + (float)a.row_eps;
      // eps adds weight without a value, so its share of the shift is taken off here.
      if (shift != nullptr)
        for (long c = 0; c < p.value_wide; c += LANES)
          store(x + t * p.ldv + c,
                load(x + t * p.ldv + c) - broadcast((float)a.row_eps) * load(shift + c));
    }
    for (long t = 0; t < count; ++t) {
      empty[t] = p.rowsum && factors[t] == 0;
      factors[t] = !p.rowsum || empty[t] ? 1 : 1 / factors[t];
    }
  }

 private:
  // Writes the rows' Σx² to `factors`.
  template <bool ADDED, bool MEAN>
  void combine_rows(const LinearProblem& p, long count, float weight, Rows added,
                    const float* mean) {
    for (long t = 0; t < count; ++t)
      factors[t] = combine<ADDED, MEAN>(p.value_wide, x + t * p.ldv, weight * scales[t],
                                        p.identity, added.data + t * added.ld, mean);
  }

  // x ← weight·x + identity·added + mean; returns Σx².
  template <bool ADDED, bool MEAN>
  static CASTLING_INLINE float combine(long wide, float* x, float weight, float identity,
                                       const float* added, const float* mean) {
    Vec by = broadcast(weight), part = broadcast(identity), even = {}, odd = {};
    auto next = [=](long c) {
      Vec row = by * load(x + c);
      if (ADDED) row += part * load(added + c);
      if (MEAN) row += load(mean + c);
      store(x + c, row);
      return row;
    };
    long c = 0;
    // Two sums hide the latency of an addition.
#pragma GCC unroll 4
    for (; c + 2 * LANES <= wide; c += 2 * LANES) {
      Vec first = next(c), second = next(c + LANES);
      even += first * first;
      odd += second * second;
    }
    if (c < wide) {
      Vec last = next(c);
      even += last * last;
    }
    return sum(even + odd);
  }
};

}  // namespace CASTLING_NAMESPACE
