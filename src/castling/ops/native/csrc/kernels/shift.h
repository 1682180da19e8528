// What values lose where gradients are wanted of attention whose rows of weights sum to one.
//
// Rows y = Σ_j w_j·v_j, Σ_j w_j = 1, lose with them whatever all values lose, and slopes ⟨g, v − y⟩ do
// not change. Without this, values far from zero leave the slopes as small differences of large
// sums, whose rounding is all that is left in queries' gradients.
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

// Near the mean of `count` rows, `found` of which are more than masked zeros, for any number will do.
// None where the mean may well be zero: then it would add errors of its own.
static void find_shift(const float* rows, long ld, long count, long found, long channels, float* to) {
  const Vec share = broadcast(1.0f / most(1, found));
  for (long c = 0; c < vectors(channels) * LANES; c += LANES) {
    Vec mean = {}, squares = {};
    for (long t = 0; t < count; ++t) {
      Vec row = load(rows + t * ld + c);
      mean += row;
      squares += row * row;
    }
    mean = mean * share;
    // Three times as far from zero as the mean of so many numbers may be by chance.
    VecI far_off = mean * mean > broadcast(9) * share * (squares * share - mean * mean);
    store(to + c, select(far_off, mean, Vec{}));
  }
  for (long c = 0; c < channels; ++c) to[c] = rounded(to[c]);
}

}  // namespace CASTLING_NAMESPACE
