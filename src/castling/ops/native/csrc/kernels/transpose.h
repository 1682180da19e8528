// Transposition in blocks of four by four.
#pragma once

#include "simd.h"

namespace CASTLING_NAMESPACE {

typedef float Four __attribute__((vector_size(16)));
typedef float LooseFour __attribute__((vector_size(16), aligned(4), may_alias));
#if defined(__clang__)
#define CASTLING_SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t FourI __attribute__((vector_size(16)));
#define CASTLING_SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, FourI{i, j, k, l})
#endif

// to[c·ldt + r] = from[r·ldf + c]; sizes are rounded up to fours, which both sides must hold.
static void transpose(const float* from, long ldf, long rows, long columns, float* to, long ldt) {
  for (long r = 0; r < rows; r += 4)
    for (long c = 0; c < columns; c += 4) {
      const float* at = from + r * ldf + c;
      Four x0 = *(const LooseFour*)at, x1 = *(const LooseFour*)(at + ldf);
      Four x2 = *(const LooseFour*)(at + 2 * ldf), x3 = *(const LooseFour*)(at + 3 * ldf);
      Four low = CASTLING_SHUFFLE(x0, x1, 0, 4, 1, 5), high = CASTLING_SHUFFLE(x0, x1, 2, 6, 3, 7);
      Four low2 = CASTLING_SHUFFLE(x2, x3, 0, 4, 1, 5);
      Four high2 = CASTLING_SHUFFLE(x2, x3, 2, 6, 3, 7);
      float* out = to + c * ldt + r;
      *(LooseFour*)out = CASTLING_SHUFFLE(low, low2, 0, 1, 4, 5);
      *(LooseFour*)(out + ldt) = CASTLING_SHUFFLE(low, low2, 2, 3, 6, 7);
      *(LooseFour*)(out + 2 * ldt) = CASTLING_SHUFFLE(high, high2, 0, 1, 4, 5);
      *(LooseFour*)(out + 3 * ldt) = CASTLING_SHUFFLE(high, high2, 2, 3, 6, 7);
    }
}

}  // namespace CASTLING_NAMESPACE
