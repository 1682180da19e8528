// Rows asked for before they are needed, a few between the tiles of a product.
//
// A head's rows in a packed projection lie thousands of bytes apart, which the processor does not
// follow by itself; asked for all at once they would wait for each other.
#pragma once

#include "../arguments.h"
#include "simd.h"

namespace CASTLING_NAMESPACE {

class Ahead {
 public:
  // Also `tokens` rows of a head of `x`, the first `channels` of each.
  void add(const castling::Tensor4& x, long dtype, long b, long h, long start, long tokens,
           long channels) {
    long item = dtype == castling::FLOAT32 ? 4 : 2;
    // Channels that are apart are tokens that are together: those the processor follows. Rows of
    // one or two cache lines cost more to ask for than to wait for.
    if (x.channel != 1 || channels * item <= 128 || tokens <= 0 || count_ == MAX_STREAMS) return;
    const char* first = x.data + (b * x.batch + start * x.token + h * x.head) * item;
    streams_[count_++] = {first, (long)(x.token * item), channels * item};
    rows_ = max(rows_, tokens);
  }

  // Spread over so many calls of `step`.
  void over(long calls) { each_ = ceil_divide(rows_, max(1, calls)); }

  CASTLING_INLINE void step() {
    for (long r = min(each_, rows_); r > 0; --r, --rows_)
      for (int i = 0; i < count_; ++i) {
        Stream& s = streams_[i];
        for (long line = 0; line < s.bytes; line += 64) __builtin_prefetch(s.row + line, 0, 2);
        s.row += s.stride;
      }
  }

 private:
  static constexpr int MAX_STREAMS = 4;
  struct Stream {
    const char* row;
    long stride, bytes;
  };
  Stream streams_[MAX_STREAMS];
  int count_ = 0;
  long rows_ = 0, each_ = 0;
};

}  // namespace CASTLING_NAMESPACE
