// Feature maps φ of a block of rows, and gradients through them.
//
// φ(x) = scale·a with a row `a` that needs no division: the scale is folded into the other factor
// of a product. unit: a = x; relu: a = max(x, 0); squares: a = x²/(Σx² + eps).
#pragma once

#include "../arguments.h"
#include "rows.h"

namespace CASTLING_NAMESPACE {

// 1/√(squares + eps); a row of zeros stays zero, unless eps is 0: then it becomes NaN.
static CASTLING_INLINE float inverse_norm(float squares, float eps) {
  return squares == 0 && eps != 0 ? 0.0f : 1.0f / __builtin_sqrtf(squares + eps);
}

// For all squares, in place: vector roots and divisions take as long as scalar ones.
static void inverse_norms(float* squares, long count, float eps) {
  for (long i = 0; i < count; ++i) squares[i] = inverse_norm(squares[i], eps);
}

// Whether `a` differs from x.
static CASTLING_INLINE bool transforms(long features) {
  return features == castling::RELU || features == castling::SQUARES;
}

// a (in `to`) and scales of rows x; columns are whole vectors, zero after the last channel.
// If `squared`, `scales` already holds Σx², computed while the rows were packed.
static void map_rows(long features, Rows x, long tokens, long columns, float eps, float* to,
                     long ld, float* scales, bool squared = false) {
  bool norms = features == castling::UNIT || features == castling::SQUARES;
  for (long t = 0; norms && !squared && t < tokens; ++t)
    scales[t] = dot(x.data + t * x.ld, x.data + t * x.ld, columns);
  if (features == castling::UNIT) return inverse_norms(scales, tokens, eps);
  for (long t = 0; t < tokens; ++t) {
    const float* from = x.data + t * x.ld;
    float* out = to + t * ld;
    if (features == castling::SQUARES) {
      Vec inverse = broadcast(1.0f / (scales[t] + eps)), squares = {};
      for (long c = 0; c < columns; c += LANES) {
        Vec w = load(from + c) * load(from + c) * inverse;
        store(out + c, w);
        squares += w * w;
      }
      scales[t] = 1.0f / __builtin_sqrtf(sum(squares) + eps);
    } else {
      scales[t] = 1.0f;
      if (features == castling::RELU)
        for (long c = 0; c < columns; c += LANES) store(out + c, positive_part(load(from + c)));
    }
  }
}

// dφ to dx, in place. Products are ordered so that no power of a scale overflows.
static void map_gradients(long features, Rows x, Rows a, const float* scales, long tokens,
                          long columns, float eps, float* gradient, long ld) {
  for (long t = 0; t < tokens; ++t) {
    const float* raw = x.data + t * x.ld;
    const float* row = a.data + t * a.ld;
    float* g = gradient + t * ld;
    if (features == castling::RELU) {
      for (long c = 0; c < columns; c += LANES)
        store(g + c, select(load(raw + c) > Vec{}, load(g + c), Vec{}));
    } else if (features != castling::IDENTITY) {
      Vec scale = broadcast(scales[t]);
      Vec along = broadcast(scales[t] * dot(row, g, columns) * scales[t]);
      for (long c = 0; c < columns; c += LANES)
        store(g + c, scale * (load(g + c) - along * load(row + c)));
      if (features == castling::SQUARES) {
        Vec mean = broadcast(dot(row, g, columns));
        Vec twice = broadcast(2.0f / (dot(raw, raw, columns) + eps));
        for (long c = 0; c < columns; c += LANES)
          store(g + c, twice * load(raw + c) * (load(g + c) - mean));
      }
    }
  }
}

}  // namespace CASTLING_NAMESPACE
