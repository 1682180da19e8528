// Rows of a tensor as float32 in scratch memory, and back; any strides, any of the three precisions.
#pragma once

#include "../arguments.h"
#include "simd.h"

namespace CASTLING_NAMESPACE {

using castling::Tensor4;

// Four tokens by four channels at once where tokens lie side by side in memory (channels first).
template <class T>
static void pack_channels_first(const T* source, long channel, long tokens, long count, float* to,
                                long ld) {
  typedef float Four __attribute__((vector_size(16), aligned(4), may_alias));
  constexpr long BLOCK = 64;
  float columns[4][BLOCK];
  for (long start = 0; start < tokens; start += BLOCK) {
    long here = min(BLOCK, tokens - start);
    for (long c = 0; c < count; c += 4) {
      long wide = min(4, count - c);
      for (long i = 0; i < wide; ++i) {
        const T* from = source + (c + i) * channel + start;
        long t = 0;
        for (; t + LANES <= here; t += LANES) store(columns[i] + t, load(from + t));
        if (t < here) store_part(columns[i] + t, load_part(from + t, here - t), here - t);
      }
      float* out = to + start * ld + c;
      if (wide == 4)
        for (long t = 0; t < here; ++t)
          *(Four*)(out + t * ld) =
              Four{columns[0][t], columns[1][t], columns[2][t], columns[3][t]};
      else
        for (long t = 0; t < here; ++t)
          for (long i = 0; i < wide; ++i) out[t * ld + i] = columns[i][t];
    }
  }
}

template <class T>
static CASTLING_INLINE float as_float(const T* p) {
  return load_part(p, 1)[0];
}
template <>
CASTLING_INLINE float as_float(const float* p) {
  return *p;
}

// Row t is multiplied by factors[t] where there are factors; squares[t] becomes its Σx².
template <class T, bool FACTORS, bool SQUARES>
static void pack(const T* source, long token, long channel, long tokens, long count, float* to,
                 long ld, const float* factors, float* squares) {
  long whole = count / LANES * LANES, end = vectors(count) * LANES;
  if (channel == 1) {
    for (long t = 0; t < tokens; ++t) {
      const T* from = source + t * token;
      float* out = to + t * ld;
      Vec factor = broadcast(FACTORS ? factors[t] : 1), even = {}, odd = {};
      long c = 0;
      for (; c + 2 * LANES <= whole; c += 2 * LANES) {
        Vec x = load(from + c), y = load(from + c + LANES);
        if (SQUARES) even += x * x, odd += y * y;
        store(out + c, FACTORS ? factor * x : x);
        store(out + c + LANES, FACTORS ? factor * y : y);
      }
      for (; c < count; c += LANES) {
        Vec x = c < whole ? load(from + c) : load_part(from + c, count - c);
        if (SQUARES) even += x * x;
        store(out + c, FACTORS ? factor * x : x);
      }
      if (SQUARES) squares[t] = sum(even + odd);
    }
    return;
  }
  if (token == 1) {
    pack_channels_first(source, channel, tokens, count, to, ld);
  } else {
    for (long t = 0; t < tokens; ++t)
      for (long c = 0; c < count; ++c)
        to[t * ld + c] = as_float(source + t * token + c * channel);
  }
  for (long t = 0; t < tokens; ++t) {
    Vec total = {};
    for (long c = count; c < end; ++c) to[t * ld + c] = 0;
    for (long c = 0; (FACTORS || SQUARES) && c < end; c += LANES) {
      Vec x = load(to + t * ld + c);
      total += x * x;
      if (FACTORS) store(to + t * ld + c, broadcast(factors[t]) * x);
    }
    if (SQUARES) squares[t] = sum(total);
  }
}

template <class T>
static void pack(const T* source, const Tensor4& x, long tokens, long count, float* to, long ld,
                 const float* factors, float* squares) {
  if (factors != nullptr)
    pack<T, true, false>(source, x.token, x.channel, tokens, count, to, ld, factors, squares);
  else if (squares != nullptr)
    pack<T, false, true>(source, x.token, x.channel, tokens, count, to, ld, factors, squares);
  else
    pack<T, false, false>(source, x.token, x.channel, tokens, count, to, ld, factors, squares);
}

// Tokens start … start + tokens − 1 of a head, `count` channels, into rows of `ld` floats; channels
// up to the next whole vector become zero. Rows are optionally multiplied by factors, or their Σx²
// is computed.
static void pack_rows(const Tensor4& x, long dtype, long b, long h, long start, long tokens,
                      long count, float* to, long ld, const float* factors = nullptr,
                      float* squares = nullptr) {
  long at = b * x.batch + start * x.token + h * x.head;
  if (dtype == castling::FLOAT32)
    pack((const float*)x.data + at, x, tokens, count, to, ld, factors, squares);
  else if (dtype == castling::BFLOAT16)
    pack((const BFloat16*)x.data + at, x, tokens, count, to, ld, factors, squares);
  else
    pack((const Float16*)x.data + at, x, tokens, count, to, ld, factors, squares);
}

template <class T>
static CASTLING_INLINE void unpack_row(const float* from, long count, T* to) {
  long whole = count / LANES * LANES;
  for (long c = 0; c < whole; c += LANES) store(to + c, load(from + c));
  if (whole < count) store_part(to + whole, load(from + whole), count - whole);
}

// The reverse, into a tensor whose channels are contiguous.
static void unpack_rows(const float* from, long ld, long tokens, long count, const Tensor4& x,
                        long dtype, long b, long h, long start) {
  for (long t = 0; t < tokens; ++t) {
    long at = b * x.batch + (start + t) * x.token + h * x.head;
    if (dtype == castling::FLOAT32)
      unpack_row(from + t * ld, count, (float*)x.data + at);
    else if (dtype == castling::BFLOAT16)
      unpack_row(from + t * ld, count, (BFloat16*)x.data + at);
    else
      unpack_row(from + t * ld, count, (Float16*)x.data + at);
  }
}

struct Rows {
  const float* data;
  long ld;
};

// Whether a head's rows may be read in place: whole vectors of float32, channels contiguous.
static CASTLING_INLINE bool in_place(const Tensor4& x, long dtype, long count) {
  return dtype == castling::FLOAT32 && x.channel == 1 && count % LANES == 0;
}

// As `pack_rows`, without a copy where the tensor can be read in place.
static CASTLING_INLINE Rows rows_of(const Tensor4& x, long dtype, long b, long h, long start,
                                    long tokens, long count, float* scratch, long ld) {
  if (in_place(x, dtype, count))
    return {(const float*)x.data + b * x.batch + start * x.token + h * x.head, (long)x.token};
  pack_rows(x, dtype, b, h, start, tokens, count, scratch, ld);
  return {scratch, ld};
}

// Rows of a result: written to the tensor directly where possible, else to scratch memory.
struct Target {
  float* data;
  long ld;
  bool direct;
};

static CASTLING_INLINE Target target_of(const Tensor4& x, long dtype, long b, long h, long start,
                                        long count, float* scratch, long ld) {
  if (!in_place(x, dtype, count)) return {scratch, ld, false};
  return {(float*)x.data + b * x.batch + start * x.token + h * x.head, (long)x.token, true};
}

// Brings finished rows to the tensor, unless they are there.
static CASTLING_INLINE void deliver(const Target& rows, long tokens, long count, const Tensor4& x,
                                    long dtype, long b, long h, long start) {
  if (!rows.direct) unpack_rows(rows.data, rows.ld, tokens, count, x, dtype, b, h, start);
}

static CASTLING_INLINE Vec dot_lanes(const float* a, const float* b, long count) {
  Vec even = {}, odd = {};
  long c = 0;
  for (; c + 2 * LANES <= count; c += 2 * LANES) {
    even += load(a + c) * load(b + c);
    odd += load(a + c + LANES) * load(b + c + LANES);
  }
  for (; c < count; c += LANES) even += load(a + c) * load(b + c);
  return even + odd;
}

// Σ_c a_c·b_c over whole vectors.
static CASTLING_INLINE float dot(const float* a, const float* b, long count) {
  return sum(dot_lanes(a, b, count));
}

}  // namespace CASTLING_NAMESPACE
