// What the two orders of the exact Taylor attention share: rows of tokens read, scaled to
// x̂ = x/√(‖x‖² + eps) or x/d^¼, transposed, and gradients taken back through that and written.
//
// Masked keys are skipped when rows are read: they take no time and their content is never read.
#pragma once

#include "../arguments.h"
#include "rows.h"
#include "tasks.h"
#include "transpose.h"

namespace CASTLING_NAMESPACE {

using castling::TaylorArguments;

CASTLING_INLINE long whole(long count) { return vectors(count) * LANES; }
CASTLING_INLINE float inverse(float x) { return x == 0 ? 0.0f : 1.0f / x; }

CASTLING_INLINE void fill(float* to, long count, float x) {
  for (long i = 0; i < count; ++i) to[i] = x;
}

// Tokens of a sample that take part, ascending; null: all.
struct TokenList {
  const int32_t* tokens;
  long count;
};

// The lists of a call's samples.
class KeyLists {
 public:
  explicit KeyLists(const TaylorArguments& a)
      : memory_(a.key_mask == nullptr ? 16 : a.batch * (a.keys + 1)), keys_(a.keys) {
    masked_ = a.key_mask != nullptr;
    if (!masked_ || failed()) return;
    for (long b = 0; b < a.batch; ++b) {
      int32_t* list = at(b);
      for (long n = 0; n < a.keys; ++n)
        if (a.key_mask[b * a.keys + n]) list[++list[0]] = static_cast<int32_t>(n);
    }
  }
  bool failed() const { return memory_.data == nullptr; }
  TokenList operator[](long b) const {
    if (!masked_) return {nullptr, keys_};
    const int32_t* list = reinterpret_cast<const int32_t*>(memory_.data) + b * (keys_ + 1);
    return {list + 1, list[0]};
  }

 private:
  int32_t* at(long b) {
    int32_t* list = reinterpret_cast<int32_t*>(memory_.data) + b * (keys_ + 1);
    list[0] = 0;
    return list;
  }

  castling::Scratch memory_;
  long keys_;
  bool masked_;
};

// run(offset, token, count) for each run of consecutive tokens in list[first …].
template <class Run>
static CASTLING_INLINE void each_stretch(TokenList list, long first, long count, const Run& run) {
  if (list.tokens == nullptr) return run(0, first, count);
  const int32_t* tokens = list.tokens + first;
  for (long from = 0, to = 1; from < count; from = to++) {
    while (to < count && tokens[to] == tokens[from] + (to - from)) ++to;
    run(from, tokens[from], to - from);
  }
}

constexpr TokenList ALL = {nullptr, 0};

static void read_rows(const TaylorArguments& a, const Tensor4& x, TokenList list, long b, long h,
                      long first, long count, long channels, float* rows, long ld) {
  each_stretch(list, first, count, [&](long offset, long token, long tokens) {
    pack_rows(x, a.dtype, b, h, token, tokens, channels, rows + offset * ld, ld);
  });
}

static void write_rows(const TaylorArguments& a, const Tensor4& x, TokenList list, long b, long h,
                       long first, long count, long channels, const float* rows, long ld) {
  each_stretch(list, first, count, [&](long offset, long token, long tokens) {
    unpack_rows(rows + offset * ld, ld, tokens, channels, x, a.dtype, b, h, token);
  });
}

CASTLING_INLINE void scale(float* x, float factor, long count) {
  for (long c = 0; c < count; c += LANES) store(x + c, load(x + c) * broadcast(factor));
}

// Rows to unit rows (or x/d^¼) in place; stores their factors.
static void scale_rows(const TaylorArguments& a, float* rows, long ld, long count,
                       float* factors) {
  float eps = static_cast<float>(a.eps);
  for (long n = 0; n < count; ++n) {
    float* row = rows + n * ld;
    float factor = 1 / __builtin_sqrtf(__builtin_sqrtf(static_cast<float>(a.dim)));
    if (a.normalise) {
      float squares = dot(row, row, a.dim);
      // A row of zeros stays zero; without eps it becomes NaN, as with the plain norm.
      factor = squares == 0 && eps != 0 ? 0 : 1 / __builtin_sqrtf(squares + eps);
    }
    scale(row, factor, whole(a.dim));
    factors[n] = factor;
  }
}

// Gradients by scaled rows to gradients by the rows: r·(g − x̂·⟨x̂, g⟩), or g/d^¼; in place.
static void unscale_gradients(const TaylorArguments& a, const float* rows, long ld, long count,
                              const float* factors, float* gradients, long ldg) {
  for (long n = 0; n < count; ++n) {
    const float* row = rows + n * ld;
    float* gradient = gradients + n * ldg;
    Vec along = broadcast(a.normalise ? dot(row, gradient, a.dim) : 0.0f);
    for (long c = 0; c < a.dim; c += LANES)
      store(gradient + c, (load(gradient + c) - load(row + c) * along) * broadcast(factors[n]));
  }
}

// What eps adds to a row's sum: the formula adds it to the mean.
CASTLING_INLINE float row_offset(const TaylorArguments& a, TokenList list) {
  return static_cast<float>(a.eps) * static_cast<float>(max(list.count, 1));
}

// ∂L/∂out of some queries over their row sums, and its product with the outputs, which is minus
// the gradient of the row sum.
static void read_gradients(const TaylorArguments& a, long b, long h, long first, long count,
                           const float* below, float* gradients, long ld) {
  read_rows(a, a.grad_out, ALL, b, h, first, count, a.value_dim, gradients, ld);
  for (long q = 0; q < count; ++q)
    scale(gradients + q * ld, inverse(below[q]), whole(a.value_dim));
}

// Length of a piece: a multiple of `step`, at most `longest`, short enough to occupy all threads.
static long piece(const TaylorArguments& a, long total, long step, long longest) {
  long wanted = a.threads == 1 ? 1 : ceil_divide(4 * a.threads, a.batch * a.heads);
  return min(ceil_divide(ceil_divide(total, wanted), step) * step, longest);
}

// run(batch, head, first, last, memory) for all pieces of `length` of all heads.
template <class Run>
static int each_piece(const TaylorArguments& a, long total, long length, long floats,
                      const Run& run) {
  long pieces = ceil_divide(total, length);
  return each_task(a.threads, a.batch * a.heads * pieces, floats, [&](long task, float* memory) {
    long head = task / pieces, first = task % pieces * length;
    run(head / a.heads, head % a.heads, first, min(total, first + length), memory);
  });
}

}  // namespace CASTLING_NAMESPACE
