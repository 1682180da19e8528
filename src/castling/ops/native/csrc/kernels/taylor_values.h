// Values of exact Taylor attention, less a shift per head where gradients are wanted (see shift.h).
#pragma once

#include "shift.h"
#include "taylor_rows.h"

namespace CASTLING_NAMESPACE {

// The shifts of all heads; threads change none of their bits.
class ValueShifts {
 public:
  // Forward with a state, `find` them and leave them at the end of each head's `stride` floats of
  // state; backward they are there.
  ValueShifts(const TaylorArguments& a, const KeyLists& lists, long stride, bool find)
      : a_(a),
        lists_(lists),
        wanted_(a.state != nullptr),
        ld_(padded(a.value_dim)),
        memory_(wanted_ ? a.batch * a.heads * ld_ : 1),
        failed_(memory_.data == nullptr) {
    if (!wanted_ || failed_) return;
    constexpr long TOKENS_READ = 32;  // their rows stay in the first-level cache
    const size_t bytes = a.value_dim * sizeof(float);
    const auto prepare = [&](long head, float* rows) {
      float *shift = memory_.data + head * ld_, *squares = rows + TOKENS_READ * ld_;
      float* saved = a.state + (head + 1) * stride - a.value_dim;
      fill(shift, ld_, 0);
      if (!find) {
        __builtin_memcpy(shift, saved, bytes);
        return;
      }
      const TokenList list = lists[head / a.heads];
      fill(squares, ld_, 0);
      for (long k = 0; k < list.count; k += TOKENS_READ) {
        const long count = least(TOKENS_READ, list.count - k);
        read_rows(a, a.value, list, head / a.heads, head % a.heads, k, count, a.value_dim, rows,
                  ld_);
        add_moments(rows, ld_, count, whole(a.value_dim), shift, squares);
      }
      shift_of_moments(shift, squares, list.count, a.value_dim);
      __builtin_memcpy(saved, shift, bytes);
    };
    failed_ = each_task(a.threads, a.batch * a.heads, (TOKENS_READ + 1) * ld_, prepare) != 0;
  }
  bool failed() const { return failed_; }

  // v − shift of some keys of a list.
  void read(long b, long h, long first, long count, float* rows) const {
    read_rows(a_, a_.value, lists_[b], b, h, first, count, a_.value_dim, rows, ld_);
    if (wanted_) shift_rows<-1>(rows, ld_, count, shift(b, h), whole(a_.value_dim));
  }

  // out − shift of some queries, for tensors that hold every bit of the outputs.
  void read_outputs(long b, long h, long first, long count, float* rows) const {
    read_rows(a_, a_.out, ALL, b, h, first, count, a_.value_dim, rows, ld_);
    if (wanted_) shift_rows<-1>(rows, ld_, count, shift(b, h), whole(a_.value_dim));
  }

  // Σ_j p_j·(v_j − shift) -> out − shift: eps belongs to the row sums `below`, but to no key.
  void divide(long b, long h, long count, const float* below, float* rows) const {
    const Vec offset = broadcast(row_offset(a_, lists_[b]));
    for (long n = 0; n < count; ++n) {
      const Vec factor = broadcast(inverse(below[n]));
      for (long c = 0; c < a_.value_dim; c += LANES) {
        float* at = rows + n * ld_ + c;
        Vec row = load(at);
        if (wanted_) row -= offset * load(shift(b, h) + c);
        store(at, row * factor);
      }
    }
  }

  // Writes outputs; the rows are changed.
  void write_outputs(long b, long h, long first, long count, float* rows) const {
    if (wanted_) shift_rows<1>(rows, ld_, count, shift(b, h), whole(a_.value_dim));
    write_rows(a_, a_.out, ALL, b, h, first, count, a_.value_dim, rows, ld_);
  }

 private:
  const float* shift(long b, long h) const { return memory_.data + (b * a_.heads + h) * ld_; }

  const TaylorArguments& a_;
  const KeyLists& lists_;
  bool wanted_;
  long ld_;
  castling::Scratch memory_;
  bool failed_;
};

}  // namespace CASTLING_NAMESPACE
