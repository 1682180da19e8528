// What values lose before sums of them are multiplied by weights whose rows sum to one.
//
// Such products differ by little from row to row: taken of values far from zero, gradients are small
// differences of large sums.
#pragma once

#include "simd.h"

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

// A mean with eight bits behind the first: with all of them, v − m would be rounded the same way
// wherever v has the same exponent, and such errors add up. An infinite mean would make finite values
// infinite.
static float rounded(float mean) {
  uint32_t bits;
  __builtin_memcpy(&bits, &mean, sizeof bits);
  bits = (bits + 0x4000u) & ~0x7fffu;
  __builtin_memcpy(&mean, &bits, sizeof bits);
  return __builtin_isfinite(mean) ? mean : 0;
}

}  // namespace CASTLING_NAMESPACE
