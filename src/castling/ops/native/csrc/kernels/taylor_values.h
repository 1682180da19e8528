// Values of exact Taylor attention, less a shift per head.
//
// Subtracting a row from all values subtracts it from y = Σ_j w_j·v_j, Σ_j w_j = 1, and ⟨g, v − y⟩ is
// unchanged. Without it, values far from zero cancel to rounding errors in the queries' gradients.
#pragma once

#include "taylor_rows.h"

namespace CASTLING_NAMESPACE {

// rows ± m, of whole vectors.
template <int SIGN>
static void shift_rows(float* rows, long ld, long count, const float* mean, long channels) {
  for (long n = 0; n < count; ++n)
    for (long c = 0; c < channels; c += LANES) {
      float* at = rows + n * ld + c;
      store(at, SIGN > 0 ? load(at) + load(mean + c) : load(at) - load(mean + c));
    }
}

// A mean rounded to nine significant bits: with all bits, v − m would be rounded the same way for all v
// of one exponent, and such errors add up. An infinite mean gives 0: finite values stay finite.
static float rounded(float mean) {
  uint32_t bits;
  __builtin_memcpy(&bits, &mean, sizeof bits);
  bits = (bits + 0x4000u) & ~0x7fffu;
  __builtin_memcpy(&mean, &bits, sizeof bits);
  return __builtin_isfinite(mean) ? mean : 0;
}

// sums += Σ row, squares += Σ row², of whole vectors.
static void add_moments(const float* rows, long ld, long count, long channels, float* sums,
                        float* squares) {
  for (long c = 0; c < channels; c += LANES) {
    Vec total[2] = {}, square[2] = {};
    for (long t = 0; t < count; ++t) {
      Vec row = load(rows + t * ld + c);
      total[t % 2] += row;
      square[t % 2] += row * row;
    }
    store(sums + c, load(sums + c) + (total[0] + total[1]));
    store(squares + c, load(squares + c) + (square[0] + square[1]));
  }
}

// Sums of `count` rows to their shift: the mean, or 0 where rows differ by more than it: there little is
// gained, and values near zero would lose digits.
static void shift_of_moments(float* sums, const float* squares, long count, long channels) {
  const float share = 1.0f / max(1, count);
  for (long c = 0; c < channels; ++c) {
    const float mean = sums[c] * share;
    sums[c] = 2 * mean * mean > squares[c] * share ? rounded(mean) : 0;
  }
}

// The shifts of all heads, bit-identical for any number of threads.
class ValueShifts {
 public:
  // Forward (`find`), computes them and stores them at the end of each head's `stride` floats of state,
  // if there is one; backward, reads them from there.
  ValueShifts(const TaylorArguments& a, const KeyLists& lists, long stride, bool find)
      : a_(a),
        lists_(lists),
        ld_(padded(a.value_dim)),
        memory_(a.batch * a.heads * ld_),
        failed_(memory_.data == nullptr) {
    if (failed_) return;
    constexpr long TOKENS_READ = 32;  // their rows stay in the L1 cache
    const size_t bytes = a.value_dim * sizeof(float);
    const auto prepare = [&](long head, float* rows) {
      float *shift = memory_.data + head * ld_, *squares = rows + TOKENS_READ * ld_;
      float* saved = a.state == nullptr ? nullptr : a.state + (head + 1) * stride - a.value_dim;
      fill(shift, ld_, 0);
      if (!find) {
        __builtin_memcpy(shift, saved, bytes);
        return;
      }
      const TokenList list = lists[head / a.heads];
      fill(squares, ld_, 0);
      for (long k = 0; k < list.count; k += TOKENS_READ) {
        const long count = min(TOKENS_READ, list.count - k);
        read_rows(a, a.value, list, head / a.heads, head % a.heads, k, count, a.value_dim, rows,
                  ld_);
        add_moments(rows, ld_, count, whole(a.value_dim), shift, squares);
      }
      shift_of_moments(shift, squares, list.count, a.value_dim);
      if (saved != nullptr) __builtin_memcpy(saved, shift, bytes);
    };
    failed_ = each_task(a.threads, a.batch * a.heads, (TOKENS_READ + 1) * ld_, prepare) != 0;
  }
  bool failed() const { return failed_; }

  // v − shift of some keys of a list.
  void read(long b, long h, long first, long count, float* rows) const {
    read_rows(a_, a_.value, lists_[b], b, h, first, count, a_.value_dim, rows, ld_);
    shift_rows<-1>(rows, ld_, count, shift(b, h), whole(a_.value_dim));
  }

  // out − shift of some queries, for float32 outputs.
  void read_outputs(long b, long h, long first, long count, float* rows) const {
    read_rows(a_, a_.out, ALL, b, h, first, count, a_.value_dim, rows, ld_);
    shift_rows<-1>(rows, ld_, count, shift(b, h), whole(a_.value_dim));
  }

  // Σ_j p_j·(v_j − shift) -> out − shift; the row sums `below` include eps, which has no key.
  void divide(long b, long h, long count, const float* below, float* rows) const {
    const Vec offset = broadcast(row_offset(a_, lists_[b]));
    for (long n = 0; n < count; ++n) {
      const Vec factor = broadcast(inverse(below[n]));
      for (long c = 0; c < a_.value_dim; c += LANES) {
        float* at = rows + n * ld_ + c;
        store(at, (load(at) - offset * load(shift(b, h) + c)) * factor);
      }
    }
  }

  // Writes outputs; changes the rows.
  void write_outputs(long b, long h, long first, long count, float* rows) const {
    shift_rows<1>(rows, ld_, count, shift(b, h), whole(a_.value_dim));
    write_rows(a_, a_.out, ALL, b, h, first, count, a_.value_dim, rows, ld_);
  }

 private:
  const float* shift(long b, long h) const { return memory_.data + (b * a_.heads + h) * ld_; }

  const TaylorArguments& a_;
  const KeyLists& lists_;
  long ld_;
  castling::Scratch memory_;
  bool failed_;
};

}  // namespace CASTLING_NAMESPACE
