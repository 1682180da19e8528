// Depthwise convolutions of a head's values, along the tokens or on their grid, and their gradients.
//
// Values are float32 rows in memory, whole vectors, token t at values + t·ld. Weights are re-laid
// once per call: (heads, taps) along the tokens, (heads, k·k, columns) on the grid.
#pragma once

#include "../arguments.h"
#include "convolution_rows.h"
#include "transpose.h"

namespace CASTLING_NAMESPACE {

struct Local {
  long kind, taps, height, width, prefix, tokens, columns;
  // Floats of one head's weights.
  long size() const {
    return kind == castling::ALONG_TOKENS ? ceil_divide(taps, 16) * 16 : taps * taps * columns;
  }
  // Distance from a token to the last token that it reads.
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
    if (local.kind == castling::ALONG_TOKENS) {
      for (long i = 0; i < count; ++i) out[i] = weight[h * count + (flipped ? count - 1 - i : i)];
      continue;
    }
    const float* from = weight + h * value_dim * count;
    const long down = flipped ? -local.columns : local.columns;
    float* first = flipped ? out + (count - 1) * local.columns : out;
    const long fours = value_dim / 4 * 4, taps = count / 4 * 4;
    transpose(from, count, fours, taps, first, down);
    for (long i = 0; i < count; ++i) {
      float* row = first + i * down;
      for (long c = i < taps ? fours : 0; c < value_dim; ++c) row[c] = from[c * count + i];
      for (long c = value_dim; c < local.columns; ++c) row[c] = 0;
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

// Vectors of columns at once, for one token and for neighbours: enough independent sums to hide the
// latency of a multiply-add.
constexpr int ALONE = 8, TOGETHER = 2;
constexpr int NEIGHBOURS = 4;

template <int TAPS>
static void tokens_inside(const Neighbours& at, long columns) {
  over_columns<TOGETHER>(TokensInside<TAPS, NEIGHBOURS>{at}, columns);
}

// For the usual numbers of taps; null for others.
static CASTLING_INLINE auto tokens_inside_of(long taps) {
  typedef void (*Run)(const Neighbours&, long);
  static constexpr Run FOUND[] = {tokens_inside<3>, tokens_inside<5>, tokens_inside<7>,
                                  tokens_inside<9>};
  return taps >= 3 && taps <= 9 ? FOUND[(taps - 3) / 2] : Run{nullptr};
}

static void convolve_tokens(const Local& local, Neighbours at, long start, long tokens) {
  const long half = local.taps / 2;
  const auto all_inside = tokens_inside_of(local.taps);
  const Neighbours first = at;
  for (long t = 0, step; t < tokens; t += step) {
    Window window = inside(start + t, local.tokens, local.taps);
    at.weights = first.weights + window.first;
    at.values = first.values + (start + t - half + window.first) * at.ld;
    at.base = first.base + t * at.ldbase;
    at.factors = first.factors + t;
    at.to = first.to + t * at.ldto;
    step = NEIGHBOURS;
    if (all_inside != nullptr && t + step <= tokens && start + t >= half &&
        start + t + step - 1 + half < local.tokens) {
      all_inside(at, local.columns);
    } else {
      step = 1;
      over_columns<ALONE>(AlongTokens{at, window.last - window.first}, local.columns);
    }
  }
}

template <int TAPS, int TOKENS>
static void on_line(const Local& local, const Neighbours& at, Window y, Window x) {
  constexpr int WIDE = TOKENS == 1 ? 4 : TOGETHER;
  if (x.first == 0 && x.last == TAPS + TOKENS - 1)
    over_columns<WIDE>(OnLine<TAPS, TOKENS, false>{at, local.width, local.columns, y, x},
                       local.columns);
  else
    over_columns<WIDE>(OnLine<TAPS, TOKENS, true>{at, local.width, local.columns, y, x},
                       local.columns);
}

// For the usual sizes of kernel, by size and tokens; null for others.
static CASTLING_INLINE auto on_line_of(long taps, long tokens) {
  typedef void (*Run)(const Local&, const Neighbours&, Window, Window);
#define CASTLING_LINES(taps) \
  {on_line<taps, 1>, on_line<taps, 2>, on_line<taps, 3>, on_line<taps, 4>}
  static constexpr Run FOUND[][NEIGHBOURS] = {CASTLING_LINES(3), CASTLING_LINES(5),
                                              CASTLING_LINES(7)};
#undef CASTLING_LINES
  return taps >= 3 && taps <= 7 ? FOUND[(taps - 3) / 2][tokens - 1] : Run{nullptr};
}

static void convolve_grid(const Local& local, Neighbours at, long start, long tokens) {
  const long half = local.taps / 2;
  const Neighbours first = at;
  for (long t = 0, step; t < tokens; t += step) {
    const long place = start + t - local.prefix;
    at.base = first.base + t * at.ldbase;
    at.factors = first.factors + t;
    at.to = first.to + t * at.ldto;
    if (place < 0) {
      over_columns<ALONE>(AlongTokens{at, 0}, local.columns);
      step = 1;
      continue;
    }
    const long row = place / local.width, column = place % local.width;
    const Window y = inside(row, local.height, local.taps);
    at.values = first.values + (start + t + (y.first - half) * local.width - half) * at.ld;
    step = min(NEIGHBOURS, min(tokens - t, local.width - column));
    if (const auto line = on_line_of(local.taps, step)) {
      const long reach = local.taps + step - 1;
      line(local, at, y, {max(0, half - column), min(reach, local.width - column + half)});
    } else {
      step = 1;
      const Window x = inside(column, local.width, local.taps);
      over_columns<ALONE>(OnGrid{at, local.taps, local.width, local.columns, y, x},
                             local.columns);
    }
  }
}

// to_t = factor_t·base_t + convolution of the values at token start + t. `to` may be `base`.
static void convolve(const Local& local, const float* weights, const float* values, long ld,
                     long start, long tokens, const float* base, long ldbase, const float* factors,
                     float* to, long ldto) {
  const Neighbours all{weights, values, ld, base, ldbase, factors, to, ldto};
  if (local.kind == castling::ALONG_TOKENS)
    convolve_tokens(local, all, start, tokens);
  else
    convolve_grid(local, all, start, tokens);
}

// d_weights (laid like the weights) += Σ_t gradient_t ⊙ value at the tap, t in start … + tokens.
static void weight_gradients(const Local& local, const float* gradients, long ldg,
                             const float* values, long ld, long start, long tokens, float* to) {
  long half = local.taps / 2;
  if (local.kind == castling::ALONG_TOKENS) {
    for (long i = 0; i < local.taps; ++i) {
      Vec total = {};
      long first = max(0, half - i - start), last = min(tokens, local.tokens + half - i - start);
      for (long t = first; t < last; ++t)
        total += dot_lanes(gradients + t * ldg, values + (start + t + i - half) * ld,
                           local.columns);
      to[i] += sum(total);
    }
    return;
  }
  for (long t = max(0, local.prefix - start); t < tokens;) {
    long place = start + t - local.prefix, row = place / local.width, column = place % local.width;
    long run = min(tokens - t, local.width - column);
    Window y = inside(row, local.height, local.taps);
    for (long i = y.first; i < y.last; ++i)
      for (long j = 0; j < local.taps; ++j) {
        long first = max(0, half - j - column);
        long last = min(run, local.width + half - j - column);
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
