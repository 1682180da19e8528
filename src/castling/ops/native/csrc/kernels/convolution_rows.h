// Convolutions at few neighbouring tokens at once, for convolution.h.
//
// Sums stay in registers from the first tap to the last; neighbouring tokens share loaded values and,
// on the grid, weights.
#pragma once

#include "rows.h"

namespace CASTLING_NAMESPACE {

struct Window {
  long first, last;  // taps first … last − 1 stay inside
};

static CASTLING_INLINE Window inside(long at, long length, long taps) {
  return {max(0, taps / 2 - at), min(taps, length - at + taps / 2)};
}

// to_t = factor_t·base_t + Σ weight·value for neighbouring tokens t.
//
// `values` points to the first token that token 0 reads; on the grid, to its place in the first line
// inside as if all columns were inside. `weights` points to the first tap; along the tokens, to the
// first tap inside.
struct Neighbours {
  const float *weights, *values;
  long ld;
  const float* base;
  long ldbase;
  const float* factors;
  float* to;
  long ldto;
};

template <int TOKENS, int WIDE>
struct Sums {
  Vec of[TOKENS][WIDE];

  CASTLING_INLINE Sums(const Neighbours& at, long c) {
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; ++v)
        of[t][v] = broadcast(at.factors[t]) * load(at.base + t * at.ldbase + c + v * LANES);
  }

  CASTLING_INLINE void write(const Neighbours& at, long c) const {
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; ++v) store(at.to + t * at.ldto + c + v * LANES, of[t][v]);
  }
};

// Shape::run<WIDE>(c) for all columns: WIDE vectors at a time, then fewer for the remainder.
template <int WIDE, class Shape>
static CASTLING_INLINE void over_columns(const Shape& shape, long columns, long c = 0) {
  for (; c + WIDE * LANES <= columns; c += WIDE * LANES) shape.template run<WIDE>(c);
  if constexpr (WIDE > 1) over_columns<WIDE / 2>(shape, columns, c);
}

// One token, taps along the tokens; `taps` of them are inside.
struct AlongTokens {
  Neighbours at;
  long taps;

  template <int WIDE>
  CASTLING_INLINE void run(long c) const {
    Sums<1, WIDE> sums(at, c);
    const float* values = at.values + c;
    for (long i = 0; i < taps; ++i, values += at.ld) {
      Vec weight = broadcast(at.weights[i]);
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; ++v) sums.of[0][v] += weight * load(values + v * LANES);
    }
    sums.write(at, c);
  }
};

// TOKENS neighbours with all their TAPS inside.
template <int TAPS, int TOKENS>
struct TokensInside {
  Neighbours at;

  template <int WIDE>
  CASTLING_INLINE void run(long c) const {
    Sums<TOKENS, WIDE> sums(at, c);
    const float* values = at.values + c;
#pragma GCC unroll 16
    for (int i = 0; i < TAPS + TOKENS - 1; ++i, values += at.ld) {
      Vec row[WIDE];
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; ++v) row[v] = load(values + v * LANES);
#pragma GCC unroll 8
      for (int t = 0; t < TOKENS; ++t)
        if (i >= t && i - t < TAPS) {
          Vec weight = broadcast(at.weights[i - t]);
#pragma GCC unroll 8
          for (int v = 0; v < WIDE; ++v) sums.of[t][v] += weight * row[v];
        }
    }
    sums.write(at, c);
  }
};

// One token of a grid of `width`, any size of kernel; its lines and columns that are inside.
struct OnGrid {
  Neighbours at;
  long taps, width, columns;
  Window y, x;

  template <int WIDE>
  CASTLING_INLINE void run(long c) const {
    Sums<1, WIDE> sums(at, c);
    const float* line = at.values + c;
    for (long i = y.first; i < y.last; ++i, line += width * at.ld)
      for (long j = x.first; j < x.last; ++j) {
        const float* weight = at.weights + (i * taps + j) * columns + c;
#pragma GCC unroll 8
        for (int v = 0; v < WIDE; ++v)
          sums.of[0][v] += load(weight + v * LANES) * load(line + j * at.ld + v * LANES);
      }
    sums.write(at, c);
  }
};

// TOKENS neighbours on one line; of the TAPS + TOKENS − 1 columns they read, those in `x` are inside.
template <int TAPS, int TOKENS, bool EDGE>
struct OnLine {
  Neighbours at;
  long width, columns;
  Window y, x;

  template <int WIDE>
  CASTLING_INLINE void run(long c) const {
    Sums<TOKENS, WIDE> sums(at, c);
    const float* line = at.values + c;
    for (long i = y.first; i < y.last; ++i, line += width * at.ld) {
      const float* weight = at.weights + i * TAPS * columns + c;
      Vec w[TAPS][WIDE];
#pragma GCC unroll 8
      for (int j = 0; j < TAPS; ++j)
#pragma GCC unroll 8
        for (int v = 0; v < WIDE; ++v) w[j][v] = load(weight + j * columns + v * LANES);
#pragma GCC unroll 16
      for (int r = 0; r < TAPS + TOKENS - 1; ++r) {
        if (EDGE && (r < x.first || r >= x.last)) continue;
#pragma GCC unroll 8
        for (int v = 0; v < WIDE; ++v) {
          Vec value = load(line + r * at.ld + v * LANES);
#pragma GCC unroll 8
          for (int t = 0; t < TOKENS; ++t)
            if (r >= t && r - t < TAPS) sums.of[t][v] += w[r - t][v] * value;
        }
      }
    }
    sums.write(at, c);
  }
};

}  // namespace CASTLING_NAMESPACE
