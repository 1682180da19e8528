// GELU, the logistic function and bounds, on vectors.
#pragma once

#include "simd.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace CASTLING_NAMESPACE {

// b if either is NaN. Compilers turn the comparison into three instructions, the intrinsic is one;
// GELU spends most of its time here.
CASTLING_INLINE Vec largest(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_max_ps((__mmask16)-1, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_max_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec)_mm_max_ps((__m128)a, (__m128)b);
#else
  return select(a > b, a, b);
#endif
}

CASTLING_INLINE Vec smallest(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_min_ps((__mmask16)-1, (__m512)a, (__m512)b);
#elif defined(__AVX2__)
  return (Vec)_mm256_min_ps((__m256)a, (__m256)b);
#elif defined(__SSE2__)
  return (Vec)_mm_min_ps((__m128)a, (__m128)b);
#else
  return select(a < b, a, b);
#endif
}

CASTLING_INLINE Vec relu(Vec x) { return largest(Vec{}, x); }

// x·Φ(x), the exact form. Φ(x) = ½ + x·P(x²)/Q(x²) for |x| ≤ 5.2, a minimax fit of our own with an
// error below 4e-9 before rounding; beyond, Φ is 0 or 1 to within rounding.
CASTLING_INLINE Vec gelu(Vec x) {
  constexpr float P[] = {0.3989422619342804f,   0.032544828951358795f, 0.00460865767672658f,
                         0.00015686394181102514f, 6.407859018509043e-06f, 2.4730585579391118e-08f};
  constexpr float Q[] = {1.0f,                  0.24824413657188416f,  0.027926836162805557f,
                         0.0018172155832871795f, 7.049662963254377e-05f, 1.2588507161126472e-06f};
  Vec bounded = smallest(largest(x, broadcast(-5.2f)), broadcast(5.2f));
  Vec square = bounded * bounded, p = broadcast(P[5]), q = broadcast(Q[5]);
  for (int i = 4; i >= 0; --i) {
    p = p * square + P[i];
    q = q * square + Q[i];
  }
  return x * (0.5f + bounded * (p / q));
}

CASTLING_INLINE float logistic(float x) { return 1.0f / (1.0f + __builtin_expf(-x)); }

}  // namespace CASTLING_NAMESPACE
