// Depthwise convolutions of a head's values, along the tokens or on their grid, and their gradients.
//
// Values are float32 rows in memory, whole vectors, token t at values + t·ld. Weights are re-laid
// once per call: (heads, taps) along the tokens, (heads, k·k, columns) on the grid.
#pragma once

#include "../linear_attention.h"
#include "rows.h"

namespace CASTLING_NAMESPACE {

struct Local {
  long kind, taps, height, width, prefix, tokens, columns;
  // Floats of one head's weights.
  long size() const {
    return kind == castling::ALONG_TOKENS ? ceil_divide(taps, 16) * 16 : taps * taps * columns;
  }
  // Tokens from one to the last that is read for it.
  long reach() const {
    return kind == castling::ON_GRID ? taps / 2 * (width + 1) : kind ? taps / 2 : 0;
  }
};

// Re-lay a parameter; `flipped` for the gradient of the values, which is a convolution too.
static void lay_weights(const Local& local, const float* weight, long heads, long value_dim,
                        bool flipped, float* to) {
  long count = local.kind == castling::ALONG_TOKENS ? local.taps : local.taps * local.taps;
  for (long h = 0; h < heads; ++h) {
    float* out = to + h * local.size();
    for (long i = 0; i < count; ++i) {
      const float* from = weight + (flipped ? count - 1 - i : i);
      if (local.kind == castling::ALONG_TOKENS) {
        out[i] = from[h * count];
        continue;
      }
      for (long c = 0; c < value_dim; ++c)
        out[i * local.columns + c] = from[(h * value_dim + c) * count];
      for (long c = value_dim; c < local.columns; ++c) out[i * local.columns + c] = 0;
    }
  }
}

// The reverse, for the gradient of the parameter.
static void unlay_weights(const Local& local, const float* laid, long heads, long value_dim,
                          float* weight) {
  long count = local.kind == castling::ALONG_TOKENS ? local.taps : local.taps * local.taps;
  for (long h = 0; h < heads; ++h)
    for (long i = 0; i < count; ++i)
      if (local.kind == castling::ALONG_TOKENS)
        weight[h * count + i] = laid[h * local.size() + i];
      else
        for (long c = 0; c < value_dim; ++c)
          weight[(h * value_dim + c) * count + i] = laid[h * local.size() + i * local.columns + c];
}

struct Window {
  long first, last;  // taps first … last − 1 stay inside
};

static CASTLING_INLINE Window inside(long at, long length, long taps) {
  return {most(0, taps / 2 - at), least(taps, length - at + taps / 2)};
}

template <int WIDE>
static CASTLING_INLINE void along_tokens(const float* weights, Window window, const float* values,
                                         long ld, const float* base, float factor, float* to) {
  Vec sums[WIDE];
#pragma GCC unroll 8
  for (int v = 0; v < WIDE; ++v) sums[v] = broadcast(factor) * load(base + v * LANES);
  for (long i = window.first; i < window.last; ++i, values += ld) {
    Vec weight = broadcast(weights[i]);
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v) sums[v] += weight * load(values + v * LANES);
  }
#pragma GCC unroll 8
  for (int v = 0; v < WIDE; ++v) store(to + v * LANES, sums[v]);
}

// TOKENS neighbours with all their taps inside share each value they load.
template <int TAPS, int TOKENS, int WIDE>
static CASTLING_INLINE void along_neighbours(const float* weights, const float* values, long ld,
                                             const float* base, long ldbase, const float* factors,
                                             float* to, long ldto) {
  Vec sums[TOKENS][WIDE];
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v)
      sums[t][v] = broadcast(factors[t]) * load(base + t * ldbase + v * LANES);
#pragma GCC unroll 16
  for (int i = 0; i < TAPS + TOKENS - 1; ++i, values += ld) {
    Vec row[WIDE];
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v) row[v] = load(values + v * LANES);
#pragma GCC unroll 8
    for (int t = 0; t < TOKENS; ++t)
      if (i >= t && i - t < TAPS) {
        Vec weight = broadcast(weights[i - t]);
#pragma GCC unroll 8
        for (int v = 0; v < WIDE; ++v) sums[t][v] += weight * row[v];
      }
  }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v) store(to + t * ldto + v * LANES, sums[t][v]);
}

constexpr int NEIGHBOURS = 4;

template <int TAPS>
static void along_neighbours_rows(long columns, const float* weights, const float* values, long ld,
                                  const float* base, long ldbase, const float* factors, float* to,
                                  long ldto) {
  long c = 0;
  for (; c + 2 * LANES <= columns; c += 2 * LANES)
    along_neighbours<TAPS, NEIGHBOURS, 2>(weights, values + c, ld, base + c, ldbase, factors,
                                          to + c, ldto);
  if (c < columns)
    along_neighbours<TAPS, NEIGHBOURS, 1>(weights, values + c, ld, base + c, ldbase, factors,
                                          to + c, ldto);
}

typedef void (*Neighbours)(long, const float*, const float*, long, const float*, long,
                           const float*, float*, long);

// For the usual numbers of taps; null for others.
static CASTLING_INLINE Neighbours neighbours_of(long taps) {
  static constexpr Neighbours FOUND[] = {along_neighbours_rows<3>, along_neighbours_rows<5>,
                                         along_neighbours_rows<7>, along_neighbours_rows<9>};
  return taps >= 3 && taps <= 9 ? FOUND[(taps - 3) / 2] : nullptr;
}

// TOKENS neighbours on one line of the grid share each weight they load.
template <int TOKENS, int WIDE>
static CASTLING_INLINE void on_grid(const Local& local, const float* weights, Window y, Window x,
                                    const float* values, long ld, const float* base, long ldbase,
                                    const float* factors, float* to, long ldto) {
  Vec sums[TOKENS][WIDE];
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v)
      sums[t][v] = broadcast(factors[t]) * load(base + t * ldbase + v * LANES);
  for (long i = y.first; i < y.last; ++i) {
    const float* line = values + (i - y.first) * local.width * ld;
    const float* weight = weights + (i * local.taps + x.first) * local.columns;
    for (long j = x.first; j < x.last; ++j, line += ld, weight += local.columns)
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; ++v) {
        Vec w = load(weight + v * LANES);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t) sums[t][v] += w * load(line + t * ld + v * LANES);
      }
  }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v) store(to + t * ldto + v * LANES, sums[t][v]);
}

// The same for a kernel of TAPS, all of them inside the line: neighbours share values as well.
template <int TAPS, int TOKENS, int WIDE>
static CASTLING_INLINE void on_grid_inside(const Local& local, const float* weights, Window y,
                                           const float* values, long ld, const float* base,
                                           long ldbase, const float* factors, float* to,
                                           long ldto) {
  Vec sums[TOKENS][WIDE];
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v)
      sums[t][v] = broadcast(factors[t]) * load(base + t * ldbase + v * LANES);
  for (long i = y.first; i < y.last; ++i, values += local.width * ld) {
    const float* weight = weights + i * TAPS * local.columns;
    Vec w[TAPS][WIDE];
#pragma GCC unroll 8
    for (int j = 0; j < TAPS; ++j)
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; ++v) w[j][v] = load(weight + j * local.columns + v * LANES);
#pragma GCC unroll 16
    for (int r = 0; r < TAPS + TOKENS - 1; ++r)
#pragma GCC unroll 8
      for (int v = 0; v < WIDE; ++v) {
        Vec value = load(values + r * ld + v * LANES);
#pragma GCC unroll 8
        for (int t = 0; t < TOKENS; ++t)
          if (r >= t && r - t < TAPS) sums[t][v] += w[r - t][v] * value;
      }
  }
#pragma GCC unroll 8
  for (int t = 0; t < TOKENS; ++t)
#pragma GCC unroll 8
    for (int v = 0; v < WIDE; ++v) store(to + t * ldto + v * LANES, sums[t][v]);
}

template <int TOKENS>
static CASTLING_INLINE void on_grid_row(const Local& local, const float* weights, Window y,
                                        Window x, const float* values, long ld, const float* base,
                                        long ldbase, const float* factors, float* to, long ldto) {
  // As many sums at once as multiply-adds are on their way.
  constexpr int WIDE = TOKENS == 1 ? 8 : TOKENS == 2 ? 4 : 2;
  long c = 0;
  for (; c + WIDE * LANES <= local.columns; c += WIDE * LANES)
    on_grid<TOKENS, WIDE>(local, weights + c, y, x, values + c, ld, base + c, ldbase, factors,
                          to + c, ldto);
  for (; c + 2 * LANES <= local.columns; c += 2 * LANES)
    on_grid<TOKENS, 2>(local, weights + c, y, x, values + c, ld, base + c, ldbase, factors, to + c,
                       ldto);
  if (c < local.columns)
    on_grid<TOKENS, 1>(local, weights + c, y, x, values + c, ld, base + c, ldbase, factors, to + c,
                       ldto);
}

// to_t = factor_t·base_t + convolution of the values at token start + t. `to` may be `base`.
static void convolve(const Local& local, const float* weights, const float* values, long ld,
                     long start, long tokens, const float* base, long ldbase, const float* factors,
                     float* to, long ldto) {
  long half = local.taps / 2;
  if (local.kind == castling::ALONG_TOKENS) {
    Neighbours neighbours = neighbours_of(local.taps);
    for (long t = 0; t < tokens;) {
      Window window = inside(start + t, local.tokens, local.taps);
      const float* from = values + (start + t - half + window.first) * ld;
      const float* at = base + t * ldbase;
      float* out = to + t * ldto;
      if (neighbours != nullptr && t + NEIGHBOURS <= tokens && start + t >= half &&
          start + t + NEIGHBOURS - 1 + half < local.tokens) {
        neighbours(local.columns, weights, from, ld, at, ldbase, factors + t, out, ldto);
        t += NEIGHBOURS;
        continue;
      }
      long c = 0;
      for (; c + 8 * LANES <= local.columns; c += 8 * LANES)
        along_tokens<8>(weights, window, from + c, ld, at + c, factors[t], out + c);
      for (; c + 2 * LANES <= local.columns; c += 2 * LANES)
        along_tokens<2>(weights, window, from + c, ld, at + c, factors[t], out + c);
      if (c < local.columns)
        along_tokens<1>(weights, window, from + c, ld, at + c, factors[t], out + c);
      ++t;
    }
    return;
  }
  for (long t = 0; t < tokens;) {
    long place = start + t - local.prefix;
    const float* at = base + t * ldbase;
    float* out = to + t * ldto;
    if (place < 0) {
      for (long c = 0; c < local.columns; c += LANES)
        store(out + c, broadcast(factors[t]) * load(at + c));
      ++t;
      continue;
    }
    long row = place / local.width, column = place % local.width;
    Window y = inside(row, local.height, local.taps), x = inside(column, local.width, local.taps);
    const float* from = values + (local.prefix + (row - half + y.first) * local.width + column -
                                  half + x.first) * ld;
    if (t + 4 <= tokens && column >= half && column + 3 + half < local.width) {
      if (local.taps == 3 && local.columns % (2 * LANES) == 0)
        for (long c = 0; c < local.columns; c += 2 * LANES)
          on_grid_inside<3, 4, 2>(local, weights + c, y, from + c, ld, at + c, ldbase, factors + t,
                                  out + c, ldto);
      else
        on_grid_row<4>(local, weights, y, x, from, ld, at, ldbase, factors + t, out, ldto);
      t += 4;
    } else if (t + 2 <= tokens && column >= half && column + 1 + half < local.width) {
      on_grid_row<2>(local, weights, y, x, from, ld, at, ldbase, factors + t, out, ldto);
      t += 2;
    } else {
      on_grid_row<1>(local, weights, y, x, from, ld, at, ldbase, factors + t, out, ldto);
      ++t;
    }
  }
}

// d_weights (laid like the weights) += Σ_t gradient_t ⊙ value at the tap, t in start … + tokens.
static void weight_gradients(const Local& local, const float* gradients, long ldg,
                             const float* values, long ld, long start, long tokens, float* to) {
  long half = local.taps / 2;
  if (local.kind == castling::ALONG_TOKENS) {
    for (long i = 0; i < local.taps; ++i) {
      Vec total = {};
      long first = most(0, half - i - start), last = least(tokens, local.tokens + half - i - start);
      for (long t = first; t < last; ++t)
        total += dot_lanes(gradients + t * ldg, values + (start + t + i - half) * ld,
                           local.columns);
      to[i] += sum(total);
    }
    return;
  }
  for (long t = most(0, local.prefix - start); t < tokens;) {
    long place = start + t - local.prefix, row = place / local.width, column = place % local.width;
    long run = least(tokens - t, local.width - column);
    Window y = inside(row, local.height, local.taps);
    for (long i = y.first; i < y.last; ++i)
      for (long j = 0; j < local.taps; ++j) {
        long first = most(0, half - j - column);
        long last = least(run, local.width + half - j - column);
        if (first >= last) continue;
        const float* line = values + (place + local.prefix + (i - half) * local.width + j - half) * ld;
        float* out = to + (i * local.taps + j) * local.columns;
        for (long c = 0; c < local.columns; c += LANES) {
          Vec total = load(out + c);
          for (long s = first; s < last; ++s)
            total += load(gradients + (t + s) * ldg + c) * load(line + s * ld + c);
          store(out + c, total);
        }
      }
    t += run;
  }
}

}  // namespace CASTLING_NAMESPACE
