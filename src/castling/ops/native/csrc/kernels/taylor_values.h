// Values around their mean: v − m, with m the mean of a head's values over the keys that take part.
//
// Rows of weights sum to one, so that m comes back by one addition to the outputs; slopes
// ⟨g, v − out⟩ do not change when both lose it. Without this, values far from zero leave the slopes
// as small differences of large sums, whose rounding is all that is left in queries' gradients.
#pragma once

#include "shift.h"
#include "taylor_rows.h"

namespace CASTLING_NAMESPACE {

// The means of all heads; threads change none of their bits.
class ValueMeans {
 public:
  ValueMeans(const TaylorArguments& a, const KeyLists& lists)
      : a_(a), lists_(lists), ld_(padded(a.value_dim)), memory_(a.batch * a.heads * ld_) {
    constexpr long TOKENS_READ = 32;  // their rows stay in the first-level cache
    failed_ = memory_.data == nullptr ||
              each_task(a.threads, a.batch * a.heads, TOKENS_READ * ld_,
                        [&](long head, float* rows) {
      const TokenList list = lists[head / a.heads];
      float* mean = memory_.data + head * ld_;
      fill(mean, ld_, 0);
      for (long k = 0; k < list.count; k += TOKENS_READ) {
        const long count = least(TOKENS_READ, list.count - k);
        read_rows(a, a.value, list, head / a.heads, head % a.heads, k, count, a.value_dim, rows,
                  ld_);
        for (long n = 0; n < count; ++n)
          shift_rows<1>(mean, ld_, 1, rows + n * ld_, whole(a.value_dim));
      }
      scale(mean, 1 / static_cast<float>(most(list.count, 1)), whole(a.value_dim));
      for (long c = 0; c < a.value_dim; ++c) mean[c] = rounded(mean[c]);
    }) != 0;
  }
  bool failed() const { return failed_; }

  // v − m of some keys of a list.
  void read(long b, long h, long first, long count, float* rows) const {
    read_rows(a_, a_.value, lists_[b], b, h, first, count, a_.value_dim, rows, ld_);
    shift_rows<-1>(rows, ld_, count, mean(b, h), whole(a_.value_dim));
  }

  // out − m of some queries, for tensors that hold every bit of the outputs.
  void read_outputs(long b, long h, long first, long count, float* rows) const {
    read_rows(a_, a_.out, ALL, b, h, first, count, a_.value_dim, rows, ld_);
    shift_rows<-1>(rows, ld_, count, mean(b, h), whole(a_.value_dim));
  }

  // Σ_j p_j·(v_j − m) -> out − m: eps belongs to the row sums `below`, but to no key.
  void divide(long b, long h, long count, const float* below, float* rows) const {
    const float offset = row_offset(a_, lists_[b]);
    for (long n = 0; n < count; ++n) {
      const Vec factor = broadcast(inverse(below[n]));
      for (long c = 0; c < a_.value_dim; c += LANES) {
        float* at = rows + n * ld_ + c;
        store(at, (load(at) - broadcast(offset) * load(mean(b, h) + c)) * factor);
      }
    }
  }

  // Writes outputs; the rows are changed.
  void write_outputs(long b, long h, long first, long count, float* rows) const {
    shift_rows<1>(rows, ld_, count, mean(b, h), whole(a_.value_dim));
    write_rows(a_, a_.out, ALL, b, h, first, count, a_.value_dim, rows, ld_);
  }

 private:
  const float* mean(long b, long h) const { return memory_.data + (b * a_.heads + h) * ld_; }

  const TaylorArguments& a_;
  const KeyLists& lists_;
  long ld_;
  castling::Scratch memory_;
  bool failed_;
};

}  // namespace CASTLING_NAMESPACE
