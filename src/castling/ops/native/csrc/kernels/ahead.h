// Prefetching of rows, a few between the tiles of a product.
//
// A head's rows in a packed projection lie thousands of bytes apart, too far for the hardware
// prefetcher; prefetched all at once they would fill the processor's queue.
#pragma once

#include "../arguments.h"
#include "simd.h"

namespace CASTLING_NAMESPACE {

class Ahead {
 public:
  // Adds `tokens` rows of a head of `x`, the first `channels` of each.
  void add(const castling::Tensor4& x, long dtype, long b, long h, long start, long tokens,
           long channels) {
    long item = dtype == castling::FLOAT32 ? 4 : 2;
    // Where channels are strided, tokens are adjacent: the hardware prefetches those. Rows of one or
    // two cache lines take longer to prefetch than to load.
    if (x.channel != 1 || channels * item <= 128 || tokens <= 0 || count_ == MAX_STREAMS) return;
    const char* first = x.data + (b * x.batch + start * x.token + h * x.head) * item;
    streams_[count_++] = {first, (long)(x.token * item), channels * item};
    rows_ = max(rows_, tokens);
  }

  // Spreads the rows over `calls` calls of `step`.
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
