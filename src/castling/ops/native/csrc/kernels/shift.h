// What values of exact Taylor attention lose where its gradients are wanted.
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

// Sums of `count` rows become what they lose: their mean. Not where they differ by more than that:
// little would be gained, and those near zero would lose digits.
static void shift_of_moments(float* sums, const float* squares, long count, long channels) {
  const float share = 1.0f / most(1, count);
  for (long c = 0; c < channels; ++c) {
    const float mean = sums[c] * share;
    sums[c] = 2 * mean * mean > squares[c] * share ? rounded(mean) : 0;
  }
}

}  // namespace CASTLING_NAMESPACE
